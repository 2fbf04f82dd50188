"""Whether the GPU answers, and at the power it was made for."""

from pathlib import Path

import msgspec
import pytest

from edgelm.devices.checks.gpu import power_limit, readable
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


@pytest.mark.parametrize(
    ("listing", "severity", "what"),
    [
        (
            f"{NAME}, 115.00 W, 115.00 W\n",
            "ok",
            f"the power limit of {NAME} is 115 W, by default 115 W",
        ),
        (
            f"{NAME}, 92.00 W, 115.00 W\n",
            "ok",
            f"the power limit of {NAME} is 92 W, by default 115 W",
        ),
        (
            f"A, 300.00 W, 300.00 W\n{NAME}, 60.00 W, 115.00 W\n",
            "warning",
            f"the power limit of {NAME} is 60 W, by default 115 W",
        ),
        (f"{NAME}, [N/A], [N/A]\n", "unknown", "the power limit of the GPU"),
        (f"{NAME}, 0.00 W, 0.00 W\n", "unknown", "the power limit of the GPU"),
        ("", "unknown", "the power limit of the GPU"),
    ],
    ids=["default", "little-less", "second-of-two", "laptop", "zero", "nothing"],
)
def test_power_limit(listing: str, severity: str, what: str, tmp_path: Path) -> None:
    verdict = power_limit(context(LAPTOP, tmp_path, answers={"nvidia-smi": listing}))
    assert verdict
    assert (verdict.severity, verdict.what) == (severity, what)
    if severity == "warning":
        assert verdict.fix.startswith("sudo nvidia-smi -pl 115;")


def test_power_limit_without_nvidia_smi(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nvidia-smi: not there"):
        power_limit(context(LAPTOP, tmp_path))


def test_power_limit_of_other_machines(tmp_path: Path) -> None:
    assert power_limit(context(PLAIN, tmp_path)) is None
    assert power_limit(context(ORIN_NANO, tmp_path)) is None
