"""What text from the teacher goes through before it is data."""
