"""The command is run for each target, and its result is reported."""

import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from bench.studies.builds.every_target import Exported, _compiled_for_target, devices, main
from edgelm.bundle.manifest import CompiledEngine, EngineRequirement, Manifest
from edgelm.export.cli import main as export
from tests.checkpoints.tiny_chat import save_tiny_chat


def run_here(command: list[str], **_: Any) -> SimpleNamespace:
    """`edge-export` without a process of its own, whose imports are most of what it takes."""
    assert command[:3] == [sys.executable, "-m", "edgelm.export.cli"]
    with redirect_stderr(StringIO()) as said, redirect_stdout(StringIO()):
        code = export(command[3:])
    return SimpleNamespace(returncode=code, stderr=said.getvalue())


@pytest.mark.slow
def test_targets_with_the_same_result_share_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", run_here)
    source, out = save_tiny_chat(tmp_path / "source", num_hidden_layers=2), tmp_path / "out"
    command = [str(source), "-o", str(out), "--precision", "fp16", "--targets"]
    assert main([*command, "jetson-agx-orin-64gb,jetson-orin-nano-8gb"]) == 0
    assert main([*command, "jetson-agx-orin-64gb,no-such-device"]) == 0
    found = msgspec.json.decode((out / "targets.json").read_bytes(), type=list[Exported])
    assert [one.target for one in found] == [
        "jetson-agx-orin-64gb",
        "jetson-orin-nano-8gb",
        "no-such-device",
    ], "finished targets are not exported again"
    first, second, unknown = found
    assert (first.exit_code, first.pending, first.compute_capabilities) == (0, True, (87,))
    assert first.kl is not None
    assert first.kl < 1e-3
    assert first.weight_bytes == second.weight_bytes > 0
    assert unknown.exit_code == 2
    assert "unknown" in unknown.error
    table = capsys.readouterr().out
    assert "| jetson-agx-orin-64gb, jetson-orin-nano-8gb | fp16 | standard | 87 |" in table
    assert {path.name for path in out.iterdir()} == {"targets.json", "work"}


def test_devices_are_those_at_the_edge() -> None:
    names = devices()
    assert {"jetson-xavier-nx", "jetson-thor-t5000", "rtx-4060-laptop", "dgx-spark-gb10"} <= {
        *names
    }
    assert not {"cpu", "h100-sxm-80gb"} & {*names}


def _manifest(needed: EngineRequirement, *engines: CompiledEngine) -> Manifest:
    return cast(Manifest, SimpleNamespace(engine=needed, engines=engines))


def test_the_engine_is_that_of_the_target() -> None:
    desktop, orin = (
        CompiledEngine(f"engines/{sm}", "tensorrt", "10.16", (sm,), "0" * 64, 1, 60.0, "builder")
        for sm in (89, 87)
    )
    needed = EngineRequirement("tensorrt", "10.16", (87,))
    assert _compiled_for_target(_manifest(needed, desktop, orin)) == orin
    assert _compiled_for_target(_manifest(needed, desktop)) is None
    assert _compiled_for_target(_manifest(needed)) is None
    other = EngineRequirement("tensorrt-rtx", "1.3")
    assert _compiled_for_target(_manifest(other, desktop, orin)) is None
