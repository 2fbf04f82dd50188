"""The folder of a run: results of stages, resuming, the summary page."""
