"""Real machines, rebuilt from public dumps: each is what `truth.json` says it is."""

from pathlib import Path
from typing import Any

import pytest

from edgelm.devices.detection.detect import describe, detect
from edgelm.devices.detection.machine import Machine
from edgelm.devices.doctor import examine
from edgelm.devices.profile import load_profile
from edgelm.devices.this_machine import engine_of_machine, fit_memory, tensorrt_version
from edgelm.errors import BadInput
from tests.devices.recorded_machines import recorded, truths

GIB = 2**30
TRUTHS = truths()
each = pytest.mark.parametrize("name", sorted(TRUTHS))
# In words in the table: names of ours for them.
PROFILES = {
    "rtx-3080-laptop with 16 GB": "rtx-3080-laptop-16gb",
    "rtx-a2000-laptop with 8 GB": "rtx-a2000-laptop-8gb",
    "h100-sxm-80gb is the card; the slice has 10 GB": "h100-sxm-80gb",
    "rtx-5090 (GPU 1)": "rtx-5090",
    "jetson-thor-t5000 is nearest (IGX Thor T7000 has its own module)": "jetson-thor-t5000",
    "none (Maxwell)": None,
    "unknown until the driver is there": None,
}
MODES = {"25W (default of a new super kit)": "25W", "cannot be known": None, "?": "120W"}
SMS = {"4 by the conf's mask 252": 4}
JETPACKS = {"cannot be known": None, "7.x": "7.1", "4.6.x": "4.6.5"}
DIALECTS = {
    "none of edgelm's": None,
    "none": None,
    "by TensorRT in the image": "decomposed",
    "standard (tensorrt-rtx)": "standard",
}


def found(name: str, folder: Path) -> tuple[Machine, dict[str, Any]]:
    return detect(recorded(name, folder)), TRUTHS[name].truth


@each
def test_profile(name: str, tmp_path: Path) -> None:
    machine, truth = found(name, tmp_path)
    assert machine.profile == PROFILES.get(truth["profile"], truth["profile"])
    if machine.profile:
        load_profile(machine.profile)


@each
def test_jetson(name: str, tmp_path: Path) -> None:
    machine, truth = found(name, tmp_path)
    if truth["jetpack"] is None:
        assert machine.jetson is None
        return
    assert machine.jetson
    assert machine.jetson.jetpack == JETPACKS.get(truth["jetpack"], truth["jetpack"])
    assert machine.jetson.power_mode == MODES.get(truth["mode"], truth["mode"])
    assert truth.get("part") in (None, machine.jetson.part)
    assert machine.gpus[0].sm_count == SMS.get(truth["sms"], truth["sms"])


@each
def test_memory(name: str, tmp_path: Path) -> None:
    machine, truth = found(name, tmp_path)
    if not isinstance(truth["memory_gib"], int | float):
        assert all(gpu.memory_bytes is None for gpu in machine.gpus)
        return
    sizes = [(gpu.memory_bytes or 0) / GIB for gpu in machine.gpus]
    assert min(abs(size - truth["memory_gib"]) for size in sizes) < 0.2


@each
def test_multiprocessors_of_cards(name: str, tmp_path: Path) -> None:
    machine, truth = found(name, tmp_path)
    if truth["jetpack"] is None:
        largest = max(machine.gpus, key=lambda gpu: gpu.memory_bytes or 0, default=None)
        assert (largest.sm_count if largest else None) == truth["sms"]


@each
def test_dialect(name: str, tmp_path: Path) -> None:
    machine, truth = found(name, tmp_path)
    expected = DIALECTS.get(truth["dialect"], truth["dialect"])
    if machine.profile is None:
        assert expected is None
    elif machine.jetson:
        engine = engine_of_machine(load_profile(machine.profile), machine)
        assert (engine.dialect if engine else None) == expected
        if truth["tensorrt"][0].isdigit():
            assert (tensorrt_version(machine) or "").startswith(truth["tensorrt"])
    else:
        assert load_profile(machine.profile).engine().dialect == expected


@each
def test_budget_is_not_more_than_the_machine_has(name: str, tmp_path: Path) -> None:
    machine, _ = found(name, tmp_path)
    if machine.profile is None:
        return
    profile = load_profile(machine.profile)
    if name == "h100-mig-container":
        with pytest.raises(BadInput, match="--max-memory SIZE"):
            fit_memory(profile, machine)
        return
    fitted = fit_memory(profile, machine)
    own = [gpu.memory_bytes or 0 for gpu in machine.gpus]
    assert 0 < fitted.budget_bytes <= max(own)
    if profile.memory.kind == "shared":
        assert profile.budget_bytes <= machine.memory_bytes


@pytest.mark.parametrize(
    ("name", "check", "severity", "words"),
    [
        ("orin-nano-super-l4t-36.4.7", "jetson.nvmap", "error", "36.4.7 cannot allocate"),
        ("seeed-j401-orin-nx-16gb-40w", "jetson.power-mode", "ok", "sudo nvpmodel -m 0"),
        ("agx-orin-64gb-cti-l4t-36.5.2", "jetson.jetpack", "ok", "JetPack 6.2.3 includes"),
        ("orin-nano-8gb-module-l4t-35.3.1", "jetson.jetpack", "warning", "TensorRT 8.5"),
        ("jetson-nano-p3448", "jetson.jetpack", "warning", "does not run on the GPU"),
        ("xavier-nx-cti-photon-l4t-32.6.1", "jetson.jetpack", "warning", "does not run on the GPU"),
        ("container-orin-nx-empty-release", "jetson.jetpack", "ok", "--engine tensorrt-10.3"),
        ("h100-mig-container", "gpu.memory", "unknown", "how much memory"),
        ("desktop-rtx-2060-and-5090", "gpu.power-limit", "warning", "is 400 W, it may have 575"),
        (
            "rtx-a2000-8gb-laptop",
            "gpu.power-limit",
            "unknown",
            "whether 40 W is the highest power limit",
        ),
        ("laptop-nvidia-driver-missing", "gpu.readable", "warning", "Driver Not Loaded"),
    ],
)
def test_doctor(name: str, check: str, severity: str, words: str, tmp_path: Path) -> None:
    probes = recorded(name, tmp_path)
    (result,) = [one for one in examine(detect(probes), probes) if one.check == check]
    assert result.severity == severity
    assert words in result.what


@each
def test_no_question_is_left_without_advice(name: str, tmp_path: Path) -> None:
    probes = recorded(name, tmp_path)
    machine = detect(probes)
    assert describe(machine)
    for result in examine(machine, probes):
        assert result.severity == "ok" or result.fix, result
    if machine.profile is None:
        (why,) = [it.why for it in machine.unread if it.what == "profile"]
        assert "edgelm does not run on it" in why or "--target" in why
