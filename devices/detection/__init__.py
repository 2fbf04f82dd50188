"""What the machine at hand is."""
