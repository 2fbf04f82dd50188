"""The folder of a run: stages, resumption, the summary page."""
