"""Clock rates from the kernel: the processor's fastest core, and a Jetson's GPU."""

import re

from edgelm.devices.detection.machine import Unread
from edgelm.devices.detection.probes import Probes
from edgelm.devices.sensors.reader import Found, Reader, file_reader, sort_out

# A policy is a cluster of cores, on x86 mostly one core.
_CPU = "/sys/devices/system/cpu/cpufreq/policy*/scaling_cur_freq"
_GPU = "/sys/class/devfreq/*/cur_freq"
# 17000000.gpu and 17000000.ga10b (Orin), gpu-gpc-0 (Thor, whose gpu-nvd-0 is the video decoder)
_GPU_NAME = re.compile(r".*\.(gpu|g[a-z]\d\db)|gpu-gpc-\d+")


def find_clocks(probes: Probes) -> Found:
    """Clock rates in MHz."""
    gpus = [path for path in probes.glob(_GPU) if _GPU_NAME.fullmatch(path.parent.name)]
    found: list[Reader | Unread] = []
    if cores := probes.glob(_CPU):
        found.append(
            file_reader(probes, cores, "CPU clock", "clock", "MHz", scale=1e-3, part="cpu")
        )
    else:
        found.append(Unread("CPU clock", _CPU, "not there"))
    if gpus:
        found.append(file_reader(probes, gpus, "GPU clock", "clock", "MHz", scale=1e-6, part="gpu"))
    return sort_out(found)
