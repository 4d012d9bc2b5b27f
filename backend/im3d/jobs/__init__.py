"""The job folder, the steps of a job and their progress, and tables of jobs."""
