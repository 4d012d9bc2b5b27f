"""A job's files as objects of the scene, and pictures of the scene as files. Knows nothing of the panel."""
