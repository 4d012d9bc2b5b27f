"""`im3d evaluate`: results compared with ground truth."""
