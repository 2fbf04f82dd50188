"""What drafting gains, and that it changes no answer."""
