"""Reading and writing files safely: limits, locks, hashes, atomic replacement."""
