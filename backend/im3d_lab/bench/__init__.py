"""`im3d bench`: how long every stage takes, how much memory, and how far that is from what the machine could do."""
