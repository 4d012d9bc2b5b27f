"""Multi-view generators: one picture → the views of a whole orbit. Each family is one class behind `base.Generator`."""
