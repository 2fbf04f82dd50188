"""Checks of the machine itself: processor, memory, swap, power, sensors."""
