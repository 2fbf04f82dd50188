"""Trees of files as machines have them, and an NVML that answers from a table."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from edgelm.devices.detection.probes import Probes

Files = dict[str, str]

MEMINFO = "MemTotal:        7802884 kB\nMemFree:   311516 kB\nMemAvailable:    4983220 kB\n"
MONITOR = "/sys/class/hwmon/hwmon1"


def ina3221(folder: str, *rails: tuple[str, int, int]) -> Files:
    """A monitor with rails of (label, mV, mA), its shunt voltages and their sum."""
    files = {f"{folder}/name": "ina3221"}
    for number, (label, millivolts, milliamperes) in enumerate(rails, 1):
        files[f"{folder}/in{number}_label"] = label
        files[f"{folder}/in{number}_input"] = f"{millivolts}"
        files[f"{folder}/curr{number}_input"] = f"{milliamperes}"
        files[f"{folder}/in{number + 3}_input"] = "8"
    files[f"{folder}/in7_label"] = "sum of shunt voltages"
    files[f"{folder}/in7_input"] = "24"
    files[f"{folder}/curr4_input"] = "2400"
    return files


def thermal(kind: str, value: str, named: Files) -> Files:
    """Thermal zones or cooling devices: a file `value` for each type."""
    files: Files = {}
    for number, (name, text) in enumerate(named.items()):
        folder = f"/sys/class/thermal/{kind}{number}"
        files |= {f"{folder}/type": name, f"{folder}/{value}": text}
    return files


_OC = "/sys/devices/platform/soctherm-oc-event/hwmon/hwmon0"
_CPUFREQ = "/sys/devices/system/cpu/cpufreq"
_JETSON = {"/proc/meminfo": MEMINFO, "/proc/device-tree/compatible": "nvidia,tegra234\0"}

ORIN_NANO: Files = {
    **_JETSON,
    **ina3221(
        MONITOR, ("VDD_IN", 5000, 1200), ("VDD_CPU_GPU_CV", 5000, 300), ("VDD_SOC", 5000, 280)
    ),
    **thermal(
        "thermal_zone",
        "temp",
        {"cpu-thermal": "48500", "gpu-thermal": "-256000", "tj-thermal": "49000"},
    ),
    **thermal(
        "cooling_device",
        "cur_state",
        {
            "cpu-throttle-alert": "0",
            "gpu-throttle-alert": "0",
            "cv0-throttle-alert": "0",
            "pwm-fan": "2",
        },
    ),
    f"{_OC}/oc1_event_cnt": "3",
    f"{_OC}/oc2_event_cnt": "0",
    f"{_CPUFREQ}/policy0/scaling_cur_freq": "729600",
    f"{_CPUFREQ}/policy4/scaling_cur_freq": "1510400",
    "/sys/class/devfreq/17000000.gpu/cur_freq": "306000000",
    "/sys/class/devfreq/15340000.vic/cur_freq": "115200000",
}
AGX_ORIN: Files = {
    **_JETSON,
    **ina3221(
        "/sys/class/hwmon/hwmon3",
        ("VDD_GPU_SOC", 20000, 160),
        ("VDD_CPU_CV", 20000, 40),
        ("VIN_SYS_5V0", 5000, 980),
    ),
    **ina3221("/sys/class/hwmon/hwmon4", ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 80), ("NC", 0, 0)),
}
THOR: Files = {
    **_JETSON,
    **ina3221(MONITOR, ("VDD_GPU", 12000, 640), ("VDD_CPU_SOC_MSS", 12000, 960)),
    "/sys/class/hwmon/hwmon2/name": "ina238",
    "/sys/class/hwmon/hwmon2/power1_input": "38250000",
    "/sys/class/devfreq/gpu-gpc-0/cur_freq": "1575000000",
    "/sys/class/devfreq/gpu-nvd-0/cur_freq": "1692000000",
}
_ZONE = "/sys/class/powercap/intel-rapl"
LAPTOP: Files = {
    "/proc/meminfo": MEMINFO,
    **{
        f"{_ZONE}:{number}/{file}": text
        for number, name in [("0", "package-0"), ("0:0", "core"), ("0:1", "dram"), ("1", "psys")]
        for file, text in [
            ("name", name),
            ("energy_uj", "1000000"),
            ("max_energy_range_uj", "262143328850"),
        ]
    },
    **thermal("thermal_zone", "temp", {"acpitz": "41000", "x86_pkg_temp": "55000"}),
    **thermal(
        "cooling_device",
        "cur_state",
        {"Processor": "0", "intel_powerclamp": "-1", "TCC Offset": "3"},
    ),
    f"{_CPUFREQ}/policy0/scaling_cur_freq": "3100000",
    f"{_CPUFREQ}/policy1/scaling_cur_freq": "900000",
}


RTX: dict[str, Any] = {
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=8_585_740_288, used=1_234_000_000),
    "nvmlDeviceGetPowerUsage": 54_300,
    "nvmlDeviceGetTemperature 0": 61,
    "nvmlDeviceGetClockInfo 1": 2370,
    "nvmlDeviceGetClockInfo 2": 8001,
    "nvmlDeviceGetCurrentClocksEventReasons": 0x1,
}


class FakeNvml:
    """Answers by function name and GPU; what is not in the table is not supported."""

    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_ERROR_FUNCTION_NOT_FOUND = 13

    class NVMLError(Exception):
        """As in pynvml."""

        def __init__(self, value: int) -> None:
            super().__init__({3: "Not Supported", 13: "Function Not Found"}.get(value, "Lost"))
            self.value = value

    def __init__(self, *gpus: dict[str, Any]) -> None:
        self.gpus = gpus
        self.open = 0

    @classmethod
    def error(cls, value: int) -> Exception:
        """An answer that is an error."""
        return cls.NVMLError(value)

    def nvmlInit(self) -> None:  # noqa: N802 -- NVML's own name
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> dict[str, Any]:  # noqa: N802
        return self.gpus[number]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def ask(gpu: dict[str, Any], kind: int | None = None) -> Any:
            answer = gpu.get(name if kind is None else f"{name} {kind}", self.error(3))
            if isinstance(answer, self.NVMLError):
                raise answer
            return answer

        return ask


def no_pynvml() -> Any:
    """A machine without NVIDIA's binding."""
    raise ImportError("No module named 'pynvml'")


def machine(root: Path, files: Files, pynvml: Callable[[], Any] = no_pynvml) -> Probes:
    """Write the files below a folder and look there."""
    for path, text in files.items():
        change(root, path, text)
    return Probes(root=root, pynvml=pynvml)


def change(root: Path, path: str, text: str) -> None:
    """Give a file of the machine another text."""
    target = root / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f"{text}\n")
