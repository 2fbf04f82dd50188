"""Memory, power, temperatures, clocks and throttling, read while something is measured."""

from edgelm.devices.sensors.discovery import open_sensors
from edgelm.devices.sensors.reader import Part, Reader
from edgelm.devices.sensors.sampler import Sampler, SensorLog
from edgelm.devices.sensors.series import Sensor

__all__ = ["Part", "Reader", "Sampler", "Sensor", "SensorLog", "open_sensors"]
