"""Devices: profiles, detection, cost model and planner, doctor, sensors and calibration."""
