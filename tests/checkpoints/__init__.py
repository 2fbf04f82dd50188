"""Source models made for tests: tiny random ones of every family, in every format that is read."""
