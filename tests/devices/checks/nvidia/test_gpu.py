"""Whether the GPU answers, and at the power it was made for."""

from pathlib import Path

import msgspec
import pytest

from edgelm.devices.checks.nvidia.gpu import memory, power_limit, readable
from edgelm.devices.detection.machine import Unread
from tests.devices.checks.recorded import LAPTOP, ORIN_NANO, PLAIN, context

NAME = "NVIDIA GeForce RTX 4060 Laptop GPU"


@pytest.mark.parametrize(
    ("why", "fix"),
    [
        (
            "needs the package nvidia-ml-py: pip install 'edgelm[nvml]'",
            "pip install 'edgelm[nvml]'",
        ),
        ("Driver Not Loaded", "install NVIDIA's driver until nvidia-smi lists the GPU"),
    ],
)
def test_gpu_that_cannot_be_read(why: str, fix: str, tmp_path: Path) -> None:
    machine = msgspec.structs.replace(PLAIN, unread=(Unread("NVIDIA GPU", "NVML", why),))
    verdict = readable(context(machine, tmp_path))
    assert verdict
    assert verdict.severity == "warning"
    assert verdict.what == f"there is an NVIDIA GPU that cannot be read: {why}"
    assert verdict.fix.startswith(fix)


def test_gpu_that_is_read(tmp_path: Path) -> None:
    verdict = readable(context(LAPTOP, tmp_path))
    assert verdict
    assert verdict.severity == "ok"
    assert readable(context(PLAIN, tmp_path)) is None


NEW = "enforced.power.limit"
OLD = "name,power.limit"


@pytest.mark.parametrize(
    ("answers", "severity", "what"),
    [
        (
            {NEW: f"{NAME}, 115.00 W, 115.00 W, 140.00 W\n"},
            "ok",
            f"the power limit of {NAME} is 115 W, it may have 140 W",
        ),
        (
            {NEW: f"{NAME}, 55.00 W, 55.00 W, 105.00 W\n"},
            "warning",
            f"the power limit of {NAME} is 55 W, it may have 105 W",
        ),
        (
            {OLD: f"{NAME}, 92.00 W, 115.00 W\n"},
            "ok",
            f"the power limit of {NAME} is 92 W, it may have 115 W",
        ),
        (
            {NEW: f"A, 300.00 W, 300.00 W, 350.00 W\n{NAME}, 60.00 W, 80.00 W, 115.00 W\n"},
            "warning",
            f"the power limit of {NAME} is 60 W, it may have 115 W",
        ),
        ({OLD: f"{NAME}, [N/A], [N/A]\n"}, "unknown", "the power limit of the GPU"),
        ({OLD: f"{NAME}, 0.00 W, 0.00 W\n"}, "unknown", "the power limit of the GPU"),
        ({NEW: "", OLD: ""}, "unknown", "the power limit of the GPU"),
        ({}, "unknown", "the power limit of the GPU"),
    ],
    ids=["full", "default-is-low", "old-driver", "second", "laptop", "zero", "nothing", "no-smi"],
)
def test_power_limit_by_nvidia_smi(
    answers: dict[str, str], severity: str, what: str, tmp_path: Path
) -> None:
    verdict = power_limit(context(LAPTOP, tmp_path, answers=answers))
    assert verdict
    assert (verdict.severity, verdict.what) == (severity, what)
    assert verdict.severity == "ok" or "nvidia-powerd" in verdict.fix


@pytest.mark.parametrize(
    ("name", "now", "default", "highest", "severity"),
    [
        (NAME, 55, 55, 105, "warning"),  # without nvidia-powerd the default is the lowest
        (NAME, 100, 80, 105, "ok"),
        ("NVIDIA GeForce RTX 4090", 450, 450, 600, "ok"),  # 600 W is for overclocking
        ("NVIDIA GeForce RTX 5090", 400, 575, 600, "warning"),
        ("NVIDIA GeForce RTX 5090", 400, None, 600, "warning"),
    ],
)
def test_power_limit_by_nvml(
    name: str,
    now: float,
    default: float | None,
    highest: float,
    severity: str,
    tmp_path: Path,
) -> None:
    gpu = msgspec.structs.replace(
        LAPTOP.gpus[0],
        name=name,
        power_limit_w=now,
        default_power_limit_w=default,
        max_power_limit_w=highest,
    )
    verdict = power_limit(context(msgspec.structs.replace(LAPTOP, gpus=(gpu,)), tmp_path))
    assert verdict
    assert verdict.severity == severity
    if severity == "warning":
        assert ("nvidia-smi -pl" in verdict.fix) == ("Laptop" not in name)


@pytest.mark.parametrize(
    ("watts", "severity", "what"),
    [
        (110, "ok", f"the power limit of {NAME} is 110 W, its profile assumes 115 W"),
        (45, "unknown", f"whether 45 W is the highest power limit of {NAME} here"),
    ],
)
def test_power_limit_against_the_profile(
    watts: float, severity: str, what: str, tmp_path: Path
) -> None:
    gpu = msgspec.structs.replace(LAPTOP.gpus[0], power_limit_w=watts)
    machine = msgspec.structs.replace(LAPTOP, gpus=(gpu,), profile="rtx-4060-laptop")
    verdict = power_limit(context(machine, tmp_path))
    assert verdict
    assert (verdict.severity, verdict.what) == (severity, what)


def test_part_of_a_divided_gpu(tmp_path: Path) -> None:
    part = msgspec.structs.replace(LAPTOP.gpus[0], mig=True, memory_bytes=10 * 2**30)
    verdict = memory(context(msgspec.structs.replace(LAPTOP, gpus=(part,)), tmp_path))
    assert verdict
    assert (verdict.severity, verdict.what) == (
        "warning",
        f"{NAME} is divided (MIG); this process has 10.0 GiB of it",
    )
    hidden = msgspec.structs.replace(part, memory_bytes=None, memory_kind=None)
    verdict = memory(context(msgspec.structs.replace(LAPTOP, gpus=(hidden,)), tmp_path))
    assert verdict
    assert verdict.severity == "unknown"
    assert "--max-memory SIZE" in verdict.fix
    for whole in (LAPTOP, ORIN_NANO, PLAIN):
        assert memory(context(whole, tmp_path)) is None


def test_power_limit_of_other_machines(tmp_path: Path) -> None:
    assert power_limit(context(PLAIN, tmp_path)) is None
    assert power_limit(context(ORIN_NANO, tmp_path)) is None
