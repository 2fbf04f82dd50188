"""IFEval: the task, the checks of its instructions, and what these count."""
