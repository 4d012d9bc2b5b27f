"""Tables, plots and pictures of an evaluation."""
