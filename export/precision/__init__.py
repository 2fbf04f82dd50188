"""Which precision where: sensitivity, frontier, search, kernel rules."""
