"""What several sequences or texts at once gain."""
