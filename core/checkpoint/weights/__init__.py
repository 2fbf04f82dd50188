"""The weights of a source: which files hold them, their headers, their names and their values."""
