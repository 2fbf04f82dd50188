"""From a teacher to a student that fits a device."""
