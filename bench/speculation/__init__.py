"""What speculation gains, on four kinds of work."""
