"""What graphs of drafts, and of models that have one, have beside other graphs."""
