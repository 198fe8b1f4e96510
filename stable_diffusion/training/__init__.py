"""Training: data, tasks with their losses, the loop, and the table of runs."""
