"""`edge-run`: what a person at a terminal, or a script, sees of a model."""
