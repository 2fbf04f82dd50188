"""What `align` is made of: settings, data, the run, and what watches it."""
