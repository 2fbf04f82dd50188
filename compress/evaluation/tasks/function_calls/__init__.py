"""Function calling: the tasks, their rows, and when a call is right."""
