"""The target `this`: the profile of the machine at hand, with its own memory."""

from pathlib import Path

import msgspec
import pytest

from edgelm.devices import this_machine as module
from edgelm.devices.detection.detect import detect
from edgelm.devices.detection.machine import DetectedGpu, Machine
from edgelm.devices.profile import Profile, load_profile
from edgelm.devices.this_machine import (
    engine_of_machine,
    fit_memory,
    fit_power_mode,
    target_profile,
    tensorrt_version,
)
from edgelm.errors import BadInput, UnknownName
from tests.devices.recorded_machines import recorded

GIB = 2**30


def machine_of(name: str, folder: Path) -> Machine:
    return detect(recorded(name, folder))


def fitted(machine: Machine) -> Profile:
    assert machine.profile
    return fit_memory(load_profile(machine.profile), machine)


def with_card(machine: Machine, name: str, gib: float | None) -> Machine:
    card = DetectedGpu(
        name,
        sm=89,
        memory_bytes=int(gib * GIB) if gib else None,
        memory_kind="dedicated" if gib else None,
    )
    return msgspec.structs.replace(machine, gpus=(card,))


def test_memory_of_a_variant_that_no_profile_knows(tmp_path: Path) -> None:
    laptop = machine_of("rtx-4060-laptop", tmp_path)
    same = with_card(laptop, "NVIDIA GeForce RTX 4060 Laptop GPU", 7.99)
    assert fitted(same) == load_profile("rtx-4060-laptop")
    larger = fitted(with_card(laptop, "NVIDIA GeForce RTX 4060 Laptop GPU", 15.99))
    assert larger.name == "rtx-4060-laptop"
    assert larger.budget_bytes == int(15.99 * GIB) - 800_000_000
    assert larger.memory.bytes
    assert larger.memory.bytes.source in larger.sources


def test_memory_that_is_not_known(tmp_path: Path) -> None:
    machine = with_card(
        machine_of("rtx-4060-laptop", tmp_path), "NVIDIA GeForce RTX 4060 Laptop GPU", None
    )
    with pytest.raises(BadInput, match=r"--target rtx-4060-laptop --max-memory SIZE$"):
        fitted(machine)


@pytest.mark.parametrize(
    ("recording", "name"),
    [
        ("thor-t5000-l4t-38.2.2-maxn", "jetson-thor-t5000"),
        ("dgx-spark-real", "dgx-spark-gb10"),
        ("orin-nano-super", "jetson-orin-nano-8gb-super"),
    ],
)
def test_shared_memory_is_what_the_system_has(recording: str, name: str, tmp_path: Path) -> None:
    machine = machine_of(recording, tmp_path)
    profile = fitted(machine)
    assert profile.name == name
    assert profile.budget_bytes <= machine.memory_bytes
    # A container may be allowed less.
    less = msgspec.structs.replace(machine, memory_bytes=3_000_000_000)
    assert fitted(less).budget_bytes == 3_000_000_000


def test_module_of_another_size(tmp_path: Path) -> None:
    files = {"/proc/meminfo": "MemTotal: 15950000 kB\nMemAvailable: 12000000 kB\n"}
    xavier = detect(recorded("xavier-nx-cti-photon-l4t-32.6.1", tmp_path, files=files))
    profile = fitted(xavier)
    assert profile.name == "jetson-xavier-nx"
    assert profile.memory.bytes
    assert profile.memory.bytes.value == 16 * GIB


@pytest.mark.parametrize(
    ("recording", "mode"),
    [
        ("agx-orin-64gb-l4t-36.4.2", "MODE_30W"),
        ("orin-nano-super-l4t-36.4.7", "25W"),
        ("xavier-nx-cti-photon-l4t-32.6.1", "MODE_15W_6CORE"),
        ("container-orin-nx-empty-release", "MAXN_SUPER"),  # not known: the fastest
        ("rtx-a2000-8gb-laptop", "35W"),  # its limit is 40 W
        ("rtx-3080-laptop-16gb", "default"),
        ("dgx-spark-real", "default"),
    ],
)
def test_power_mode_is_the_machines(recording: str, mode: str, tmp_path: Path) -> None:
    machine = machine_of(recording, tmp_path)
    assert machine.profile
    assert fit_power_mode(load_profile(machine.profile), machine).power_mode == mode


@pytest.mark.parametrize(
    ("watts", "mode"),
    [(35, "35W"), (60, "35W"), (80, "default"), (140, "default"), (None, "default")],
)
def test_power_mode_by_the_limit_in_force(watts: float | None, mode: str, tmp_path: Path) -> None:
    laptop = machine_of("rtx-4060-laptop", tmp_path)
    gpus = (msgspec.structs.replace(laptop.gpus[0], power_limit_w=watts),)
    machine = msgspec.structs.replace(laptop, gpus=gpus)
    assert fit_power_mode(load_profile("rtx-4060-laptop"), machine).power_mode == mode


def test_plain_pc(tmp_path: Path) -> None:
    assert fitted(machine_of("plain-pc", tmp_path)) == load_profile("cpu")


def test_target_by_name_or_this(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert target_profile("rtx-4060-laptop") == load_profile("rtx-4060-laptop")
    machine = machine_of("thor-t5000", tmp_path)
    monkeypatch.setattr(module, "detect", lambda: machine)
    assert target_profile("THIS").name == "jetson-thor-t5000"
    unknown = machine_of("jetson-nano-p3448", tmp_path / "nano")
    monkeypatch.setattr(module, "detect", lambda: unknown)
    with pytest.raises(UnknownName, match=r"^this machine has no profile: edgelm does not run on"):
        target_profile("this")


@pytest.mark.parametrize(
    ("installed", "version", "engine"),
    [
        ({"libnvinfer10": "10.3.0.30"}, "10.3.0.30", "tensorrt-10.3"),
        ({"tensorrt": "10.16.2.10"}, "10.16.2.10", "tensorrt"),
        ({"tensorrt": "10.14.1"}, "10.14.1", "tensorrt-10.3"),
        ({"libnvinfer8": "8.5.2"}, "8.5.2", None),
        ({}, "10.3", "tensorrt-10.3"),  # JetPack's
    ],
)
def test_engine_for_the_installed_tensorrt(
    installed: dict[str, str], version: str, engine: str | None, tmp_path: Path
) -> None:
    machine = msgspec.structs.replace(machine_of("orin-nano-super", tmp_path), packages=installed)
    assert tensorrt_version(machine) == version
    found = engine_of_machine(load_profile("jetson-orin-nano-8gb-super"), machine)
    assert (found.name if found else None) == engine


def test_engine_of_a_machine_without_tensorrt(tmp_path: Path) -> None:
    machine = machine_of("plain-pc", tmp_path)
    assert engine_of_machine(load_profile("cpu"), machine) is None
