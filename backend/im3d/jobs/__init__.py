"""The job folder, its steps in order, and tables of jobs."""
