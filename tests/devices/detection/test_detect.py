"""Whole machines: what `edge-devices detect` finds, and how it says it."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from edgelm.devices.detection.detect import describe, detect
from edgelm.devices.detection.machine import Machine, Unread
from edgelm.devices.profile import profile_names
from tests.devices.recorded_machines import failing, names, nvml_module, recorded, recording

PROFILES = {
    "agx-orin-64gb-jetpack-6.2": "jetson-agx-orin-64gb",
    "agx-orin-64gb-jetpack-7.2": "jetson-agx-orin-64gb",
    "gb10": "dgx-spark-gb10",
    "orin-nano-super": "jetson-orin-nano-8gb-super",
    "plain-pc": "cpu",
    "rtx-4060-laptop": "rtx-4060-laptop",
    "thor-t5000": "jetson-thor-t5000",
}
KNOWN = [*PROFILES.values(), "jetson-orin-nano-8gb", "rtx-4070-laptop", "rtx-4060ti-laptop"]
COMPLAINTS = {
    "agx-orin-64gb-jetpack-6.2": ["memory clock", "GPU driver"],
}


@pytest.mark.parametrize("name", names())
def test_recorded_machines(tmp_path: Path, name: str) -> None:
    machine = detect(recorded(name, tmp_path), KNOWN)
    assert machine.profile == PROFILES[name]
    assert [it.what for it in machine.unread] == COMPLAINTS.get(name, [])
    assert machine.system == recording(name).system
    assert machine.memory_bytes >= machine.available_bytes > 0
    assert (machine.jetson is not None) == ("jetson" in PROFILES[name])
    assert len(machine.gpus) == (0 if name == "plain-pc" else 1)


@pytest.mark.parametrize("name", names())
def test_machine_survives_a_file(tmp_path: Path, name: str) -> None:
    machine = detect(recorded(name, tmp_path), KNOWN)
    assert msgspec.json.decode(msgspec.json.encode(machine), type=Machine) == machine


@pytest.mark.parametrize("name", names())
def test_profiles_that_are_shipped(tmp_path: Path, name: str) -> None:
    assert PROFILES[name] in profile_names()
    assert detect(recorded(name, tmp_path)).profile == PROFILES[name]


def test_packages(tmp_path: Path) -> None:
    assert detect(recorded("orin-nano-super", tmp_path), KNOWN).packages == {
        "edgelm": "0.1.0",
        "tensorrt": "10.3.0",
        "nvidia-ml-py": "12.575.51",
        "libnvinfer10": "10.3.0.30",
        "python3-libnvinfer": "10.3.0.30",
    }


def test_jetson_without_dpkg(tmp_path: Path) -> None:
    machine = detect(recorded("orin-nano-super", tmp_path, commands={}), KNOWN)
    assert machine.unread == (Unread("TensorRT of JetPack", "dpkg-query", "not there"),)


def test_jetson_without_tensorrt(tmp_path: Path) -> None:
    def none_installed(_: object) -> str:
        raise OSError("dpkg-query: no packages found matching *libnvinfer*")

    probes = recorded("orin-nano-super", tmp_path)
    object.__setattr__(probes, "run", none_installed)
    machine = detect(probes, KNOWN)
    assert "libnvinfer10" not in machine.packages
    assert machine.unread == ()


def test_container_limits_do_not_change_the_profile(tmp_path: Path) -> None:
    files = {"/sys/fs/cgroup/memory.max": "2000000000", "/sys/fs/cgroup/cpu.max": "200000 100000"}
    machine = detect(recorded("orin-nano-super", tmp_path, files=files), KNOWN)
    assert machine.profile == "jetson-orin-nano-8gb-super"
    assert (machine.memory_bytes, machine.cpu.usable) == (2_000_000_000, 2)
    assert machine.gpus[0].memory_bytes == 7_802_884 * 1024


def test_gpu_that_no_profile_knows(tmp_path: Path) -> None:
    nvml = recording("rtx-4060-laptop").nvml
    assert nvml
    module = nvml_module(nvml, nvmlDeviceGetName=lambda _: "NVIDIA GeForce RTX 4060 D Laptop GPU")
    machine = detect(recorded("rtx-4060-laptop", tmp_path, nvml=module), KNOWN)
    assert machine.profile is None
    (unread,) = machine.unread
    assert unread.what == "profile"
    assert unread.why.startswith(
        "none matches 'NVIDIA GeForce RTX 4060 D Laptop GPU'; nearest: rtx-4060"
    )


def test_jetson_that_no_profile_knows(tmp_path: Path) -> None:
    machine = detect(recorded("orin-nano-super", tmp_path), ["cpu"])
    assert machine.profile is None
    assert [it.what for it in machine.unread] == ["profile"]


def test_gpu_that_cannot_be_read_is_no_plain_pc(tmp_path: Path) -> None:
    nvml = recording("rtx-4060-laptop").nvml
    assert nvml
    module = nvml_module(nvml, nvmlInit=failing("Driver Not Loaded"))
    machine = detect(recorded("rtx-4060-laptop", tmp_path, nvml=module), KNOWN)
    assert machine.profile is None
    driver, profile = machine.unread
    assert driver.why == "Driver Not Loaded"
    assert profile.why.startswith("the GPU could not be read; plan with --target")


@pytest.mark.parametrize("name", names())
def test_nothing_can_be_read(tmp_path: Path, name: str) -> None:
    root = tmp_path / "machine"
    root.mkdir()
    every = recording(name)
    files = dict.fromkeys([*every.files, "/proc/cpuinfo"], None)
    nvml = nvml_module(every.nvml, nvmlInit=failing("Unknown Error")) if every.nvml else None
    machine = detect(recorded(name, root, files=files, commands={}, nvml=nvml), KNOWN)
    assert machine.profile == "cpu"
    assert [it.what for it in machine.unread] == ["processor", "memory"]


@pytest.mark.parametrize("content", ["", "\ufffd\0garbage:::\n", "-1", "9" * 50, "0 0"])
@pytest.mark.parametrize("name", names())
def test_no_file_can_break_detection(tmp_path: Path, name: str, content: str) -> None:
    for number, path in enumerate([*recording(name).files, "/proc/cpuinfo"]):
        machine = detect(recorded(name, tmp_path / str(number), files={path: content}), KNOWN)
        assert describe(machine)


def test_description(tmp_path: Path) -> None:
    machine = msgspec.structs.replace(
        detect(recorded("agx-orin-64gb-jetpack-6.2", tmp_path), KNOWN), python="3.10.12"
    )
    assert (
        describe(machine)
        == """\
system      Linux 5.15.148-tegra aarch64, Python 3.10.12
Jetson      NVIDIA Jetson AGX Orin Developer Kit, p3701-0005, tegra234
JetPack     6.2, Jetson Linux 36.4.3
power mode  MODE_30W (of MAXN, MODE_15W, MODE_30W, MODE_50W)
clocks now  GPU 306 MHz
GPU         Orin, sm_87, 8 SMs, 61.4 GiB shared, up to 612 MHz, CUDA 12.6
processor   Cortex-A78AE, 8 cores, 8 threads usable, asimdhp asimddp
memory      61.4 GiB, 57.3 GiB available
packages    edgelm 0.1.0, libnvinfer10 10.3.0.30
profile     jetson-agx-orin-64gb

not read:
  memory clock  /sys/kernel/debug/bpmp/debug/clk/emc/rate: only root may read it
  GPU driver    NVML: needs the package nvidia-ml-py: pip install 'edgelm[nvml]'"""
    )


def test_description_of_a_machine_without_a_gpu(tmp_path: Path) -> None:
    lines = describe(detect(recorded("plain-pc", tmp_path), KNOWN)).splitlines()
    assert [line.split()[0] for line in lines] == [
        *("system", "processor", "memory", "packages", "profile")
    ]


def test_this_machine() -> None:
    machine = detect()
    assert machine.system.startswith(sys.platform.capitalize())
    assert "edgelm" in machine.packages
    assert describe(machine)


def test_imports_are_light() -> None:
    code = (
        "import sys, edgelm.devices.detection.detect as it; it.detect(); "
        "print(*sorted({'torch', 'numpy', 'onnxruntime', 'tensorrt'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
