"""Whether the bundle fits into memory and onto the disk."""

from pathlib import Path

import msgspec
import pytest

from edgelm.devices.checks.host.memory import bundle_memory, disk_space
from edgelm.devices.detection.machine import Machine
from edgelm.devices.planner.memory.memory_need import loaded_bytes, workspace_bytes
from edgelm.devices.profile import ENVIRONMENT
from tests.core.test_imports import ROOT
from tests.devices.checks.recorded import LAPTOP, PLAIN, context, manifest


@pytest.fixture(autouse=True)
def no_profiles_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)


def with_available(gigabytes: float) -> Machine:
    return msgspec.structs.replace(PLAIN, available_bytes=int(gigabytes * 1e9))


def test_bundle_fits(tmp_path: Path) -> None:
    verdict = bundle_memory(context(with_available(8), tmp_path, manifest=manifest()))
    assert verdict
    assert verdict.severity == "ok"
    assert verdict.what.endswith("at its context of 32768, 8.00 GB are available now")


def test_bundle_fits_with_a_shorter_context(tmp_path: Path) -> None:
    verdict = bundle_memory(context(with_available(1.5), tmp_path, manifest=manifest()))
    assert verdict
    assert verdict.severity == "warning"
    assert verdict.what.endswith("at its context of 32768, 1.50 GB are available now")
    assert verdict.fix == "edge-run --max-memory 1350MB reduces the context until it fits"


def test_bundle_does_not_fit(tmp_path: Path) -> None:
    verdict = bundle_memory(context(with_available(1.1), tmp_path, manifest=manifest()))
    assert verdict
    assert verdict.severity == "error"
    assert "at a context of 256, 1.10 GB are available now" in verdict.what
    assert "fewer bits" in verdict.fix


def test_need_counts_weights_cache_workspace_and_runtime(tmp_path: Path) -> None:
    cache = 32 * 2 * 3 * 64 * 32768  # layers, keys and values, heads, head_dim, tokens; int8
    workspace = workspace_bytes(manifest().spec, kv="int8", context=32768, chunk=128)
    # Its precisions name no matrix; the graph of 32 layers, the tokenizer and the libraries.
    beside = 1_000_000 + 32 * 350_000 + 300 * 49152 + 95_000_000
    need = 900_000_000 + cache + workspace + beside
    assert loaded_bytes(manifest(), 32768) == need
    for available, severity in ((need, "ok"), (need - 1, "warning")):
        machine = msgspec.structs.replace(PLAIN, available_bytes=available)
        verdict = bundle_memory(context(machine, tmp_path, manifest=manifest()))
        assert verdict
        assert verdict.severity == severity


def test_runtime_is_that_of_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = loaded_bytes(manifest(), 256)
    text = (ROOT / "devices" / "profiles" / "cpu.toml").read_text()
    (tmp_path / "cpu.toml").write_text(text.replace("value = 95_000_000", "value = 55_000_000"))
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    assert before - loaded_bytes(manifest(), 256) == 40_000_000


def test_bundle_for_a_gpu_with_memory_of_its_own(tmp_path: Path) -> None:
    machine = msgspec.structs.replace(LAPTOP, available_bytes=1000)
    verdict = bundle_memory(context(machine, tmp_path, manifest=manifest("standard")))
    assert verdict
    assert verdict.severity == "ok"
    assert verdict.what.endswith("the GPU has 8.59 GB")
    on_the_cpu = bundle_memory(context(machine, tmp_path, manifest=manifest("ort")))
    assert on_the_cpu
    assert on_the_cpu.severity == "error"


def test_no_bundle(tmp_path: Path) -> None:
    assert bundle_memory(context(PLAIN, tmp_path)) is None


def df(free_kb: int) -> str:
    return (
        "Filesystem     1024-blocks     Used Available Capacity Mounted on\n"
        f"/dev/nvme0n1p1   480588496 35280488  {free_kb}      34% /\n"
    )


@pytest.mark.parametrize(
    ("free_kb", "severity", "what"),
    [
        (70_000_000, "ok", "71.68 GB are free on /"),
        (1_000_000, "warning", "1.02 GB are free on /, expected 2.00 GB"),
    ],
)
def test_disk_space(free_kb: int, severity: str, what: str, tmp_path: Path) -> None:
    verdict = disk_space(context(PLAIN, tmp_path, answers={"df -Pk": df(free_kb)}))
    assert verdict
    assert (verdict.severity, verdict.what) == (severity, what)


def test_disk_space_for_a_large_bundle(tmp_path: Path) -> None:
    large = msgspec.structs.replace(manifest().files["model.onnx.data"], bytes=5_000_000_000)
    verdict = disk_space(
        context(
            PLAIN,
            tmp_path,
            answers={"df -Pk": df(8_000_000)},
            manifest=manifest(files={"model.onnx.data": large}),
        )
    )
    assert verdict
    assert verdict.severity == "warning"
    assert verdict.what == "8.19 GB are free on /, expected 10.00 GB"


def test_disk_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="df: not there"):
        disk_space(context(PLAIN, tmp_path))


def test_disk_on_windows(tmp_path: Path) -> None:
    windows = msgspec.structs.replace(PLAIN, system="Windows 11 AMD64")
    verdict = disk_space(context(windows, tmp_path))
    assert verdict
    assert "on this disk" in verdict.what
