"""The Jetson's system software."""

from pathlib import Path

import msgspec
import pytest

from edgelm.devices.checks.nvidia.jetpack import nvmap, release
from edgelm.devices.detection.machine import Unread
from tests.devices.checks.recorded import LAPTOP, ORIN_NANO, context, with_jetson


@pytest.mark.parametrize("l4t", ["36.4.3", "36.4.4", "36.5.0", "36.4.70", "39.2.0"])
def test_releases_without_the_bug(l4t: str, tmp_path: Path) -> None:
    verdict = nvmap(context(with_jetson(ORIN_NANO, l4t=l4t), tmp_path))
    assert verdict
    assert verdict.severity == "ok"


def test_release_with_the_bug(tmp_path: Path) -> None:
    verdict = nvmap(context(with_jetson(ORIN_NANO, l4t="36.4.7"), tmp_path))
    assert verdict
    assert verdict.severity == "error"
    assert verdict.what == (
        "L4T 36.4.7 cannot allocate large contiguous GPU memory; fixed in 36.5.0 (JetPack 6.2.2)"
    )
    assert "NvMapMemAllocInternalTagged error 12" in verdict.why
    assert "replace r36.4 by r36.5" in verdict.fix


def test_unknown_release(tmp_path: Path) -> None:
    machine = msgspec.structs.replace(
        with_jetson(ORIN_NANO, l4t=None),
        unread=(Unread("Jetson Linux", "/etc/nv_tegra_release", "not there"),),
    )
    for check in (nvmap, release):
        verdict = check(context(machine, tmp_path))
        assert verdict
        assert verdict.severity == "unknown"
        assert verdict.why == "/etc/nv_tegra_release: not there"


@pytest.mark.parametrize(
    ("l4t", "severity", "what"),
    [
        ("36.4.3", "ok", "JetPack 6.2 includes TensorRT 10.3"),
        ("39.2.0", "ok", "JetPack 7.2 includes TensorRT 10.16"),
        ("36.3.0", "warning", "JetPack 6.0 includes TensorRT 8.6; expected 10.3 or newer"),
        ("35.4.1", "warning", "JetPack 5.1.2 includes TensorRT 8.5; expected 10.3 or newer"),
        ("99.0.0", "unknown", "which JetPack L4T 99.0.0 belongs to"),
    ],
)
def test_release(l4t: str, severity: str, what: str, tmp_path: Path) -> None:
    verdict = release(context(with_jetson(ORIN_NANO, l4t=l4t), tmp_path))
    assert verdict
    assert (verdict.severity, verdict.what) == (severity, what)


def test_xavier(tmp_path: Path) -> None:
    machine = with_jetson(ORIN_NANO, model="Jetson AGX Xavier", soc="tegra194", l4t="35.6.1")
    verdict = release(context(machine, tmp_path))
    assert verdict
    assert verdict.severity == "warning"
    assert verdict.what == "edgelm does not run on the GPU of Jetson AGX Xavier"
    assert verdict.why == ("JetPack 5, the last for Jetson Xavier, has TensorRT 8.5 and Python 3.8")
    assert "--target cpu" in verdict.fix
    assert "docs/targets.md#xavier" in verdict.fix


@pytest.mark.parametrize(("soc", "board"), [("tegra210", "Jetson Nano"), ("tegra186", "TX2")])
def test_boards_before_xavier(soc: str, board: str, tmp_path: Path) -> None:
    machine = with_jetson(ORIN_NANO, model=f"NVIDIA {board}", soc=soc, l4t="32.7.5")
    verdict = release(context(machine, tmp_path))
    assert verdict
    assert verdict.what == f"edgelm does not run on the GPU of NVIDIA {board}"
    assert "JetPack 4, the last for" in verdict.why
    assert "use an Orin or a Thor" in verdict.fix


def test_release_that_is_not_in_the_table(tmp_path: Path) -> None:
    verdict = release(context(with_jetson(ORIN_NANO, l4t="36.5.9"), tmp_path))
    assert verdict
    assert (verdict.severity, verdict.what) == (
        "ok",
        "JetPack 6.2.3 (the nearest to L4T 36.5.9 in the table) includes TensorRT 10.3",
    )


@pytest.mark.parametrize(
    ("l4t", "installed", "what"),
    [
        (
            "36.4.3",
            {},
            "JetPack 6.2 includes TensorRT 10.3: export for it with --engine tensorrt-10.3",
        ),
        ("39.2.0", {}, "JetPack 7.2 includes TensorRT 10.16"),
        (
            None,
            {"libnvinfer10": "10.3.0.30"},
            "TensorRT 10.3.0.30 is installed; JetPack is not known: export for it with --engine "
            "tensorrt-10.3",
        ),
    ],
)
def test_engine_to_export_for(
    l4t: str | None, installed: dict[str, str], what: str, tmp_path: Path
) -> None:
    machine = msgspec.structs.replace(
        with_jetson(ORIN_NANO, l4t=l4t), profile="jetson-orin-nano-8gb-super", packages=installed
    )
    verdict = release(context(machine, tmp_path))
    assert verdict
    assert (verdict.severity, verdict.what) == ("ok", what)


def test_other_machines(tmp_path: Path) -> None:
    assert nvmap(context(LAPTOP, tmp_path)) is None
    assert release(context(LAPTOP, tmp_path)) is None
