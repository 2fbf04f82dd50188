"""Exports whose graph is cut into segments, really compiled ahead of time by TensorRT-RTX."""

from pathlib import Path
from typing import Any

import pytest

from edgelm.bundle import graph_sha256, read_manifest, verify
from edgelm.errors import BadInput
from edgelm.export.bundle import compile_ahead
from edgelm.export.cli import main
from edgelm.export.pipeline import export_model
from edgelm.runtime.engines.tensorrt import build
from edgelm.runtime.engines.tensorrt.build import Built, Job
from tests.folders import contents

LAPTOP: dict[str, Any] = {"target": "laptop-rtx-4060", "precision": "fp16", "context": 64}


def test_each_segment_has_an_engine(tiny_chat: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    said: list[str] = []
    bundle = tmp_path / "bundle"
    manifest = export_model(tiny_chat, bundle, segments=2, **LAPTOP, progress=said.append)
    [engine] = manifest.engines
    assert [segment.file for segment in manifest.graph.segments] == ["model-1.onnx", "model-2.onnx"]
    assert len(engine.files) == 2
    assert all("-1of2-" in one or "-2of2-" in one for one in engine.files)
    assert engine.graph_sha256 == graph_sha256(bundle, manifest.graph)
    verify(bundle, read_manifest(bundle))
    assert any("segment 2 of 2: compiling with tensorrt-rtx" in line for line in said)
    assert manifest.gate is not None, "the gate ran the segments in a row"
    assert manifest.gate.figures.kl < 1e-4


def test_a_killed_export_resumes_from_its_work_folder(
    tiny_chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    compiled: list[str] = []
    compile_engine = build.compile_engine

    def die_once(job: Job, progress: Any) -> Built:
        if job.graph.name == "model-2.onnx" and len(compiled) == 1:
            compiled.append("killed")
            raise KeyboardInterrupt
        compiled.append(job.graph.name)
        return compile_engine(job, progress)

    monkeypatch.setattr(compile_ahead, "compile_engine", die_once)
    bundle, options = tmp_path / "bundle", {**LAPTOP, "work": tmp_path / "work", "segments": 2}
    with pytest.raises(KeyboardInterrupt):
        export_model(tiny_chat, bundle, **options)
    assert not bundle.exists()
    manifest = export_model(tiny_chat, bundle, **options)
    assert compiled == ["model-1.onnx", "killed", "model-2.onnx"]
    listed = {name for name in contents(bundle) if name.startswith("engines/")}
    assert listed == set(manifest.engines[0].files)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "cpu", "segments": 2}, "onnxruntime runs the graph as it is and compiles"),
        ({"target": "jetson-orin", "segments": 0}, "segments is 0, expected 1 to 64"),
        ({"target": "jetson-orin", "segments": 65}, "segments is 65, expected 1 to 64"),
    ],
)
def test_refused(options: dict[str, Any], message: str, tiny_chat: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        export_model(tiny_chat, tmp_path / "bundle", precision="int8", **options)
    assert not (tmp_path / "bundle").exists()


def test_the_command_line(tiny_chat: Path, tmp_path: Path) -> None:
    common = [str(tiny_chat), "--target", "jetson-orin", "--precision", "fp16", "--context", "64"]
    for number, count in (("auto", 0), ("3", 3)):
        output = tmp_path / number
        assert main([*common, "--segments", number, "-o", str(output)]) == 0
        assert len(read_manifest(output).graph.segments) == count
