"""The laboratory: training, evaluation and benchmarks. Not part of what artists install."""
