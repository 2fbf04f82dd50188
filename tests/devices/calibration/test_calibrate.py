"""Calibration solves for the costs that made the times, and writes a profile that is used."""

from datetime import date
from pathlib import Path

import pytest

from edgelm.devices.calibration import calibrate as module
from edgelm.devices.calibration import timing
from edgelm.devices.calibration.calibrate import Sample, calibrate, solve
from edgelm.devices.calibration.found import Found
from edgelm.devices.calibration.stack import HEAD_DIM, StackShape
from edgelm.devices.calibration.write import profile_text
from edgelm.devices.detection.machine import Cpu, Machine
from edgelm.devices.kernels import KERNELS
from edgelm.devices.planner.plan import plan
from edgelm.devices.profile import ENVIRONMENT, load_profile, read_profile
from edgelm.errors import BadInput, DoesNotFit
from edgelm.planning import PlanRequest
from edgelm.quantize.precision import KV_BYTES, KvType
from edgelm.spec.decoder import DecoderSpec
from tests.core.spec.test_decoder import CONFIG

LAYER_MS, CHUNK_LAYER_MS = 0.05, 0.4
WEIGHTS_GB_S = {"fp32": 40.0, "int8": 30.0, "int4": 25.0}
CACHE_GB_S: dict[KvType, float] = {"fp32": 20.0, "int8": 8.0}
TFLOPS = {"fp32": 0.3, "int8": 0.5, "int4": 0.4}
ATTENTION_TFLOPS = 0.2
MACHINE = Machine(
    system="Linux",
    python="3.11",
    memory_bytes=8 * 2**30,
    available_bytes=4 * 2**30,
    cpu=Cpu('A "quoted" \\ processor', 2, 2),
    packages={"onnxruntime": "1.32.0"},
)


def sample(shape: StackShape, precision: str, kv: KvType) -> Sample:
    """Times that follow exactly from the costs above."""
    bits = KERNELS["onnxruntime"].precision(precision).bits_per_weight
    weights = shape.layers * shape.parameters_per_layer * bits / 8
    cache = shape.layers * 2 * shape.kv_heads * HEAD_DIM * KV_BYTES[kv] * 4096
    step = weights / WEIGHTS_GB_S[precision] / 1e6 + shape.layers * LAYER_MS
    operations = 2 * 128 * shape.layers * shape.parameters_per_layer
    chunk = operations / TFLOPS[precision] / 1e9 + shape.layers * CHUNK_LAYER_MS
    attention = 4 * 128 * 4096 * shape.layers * shape.heads * HEAD_DIM / ATTENTION_TFLOPS / 1e9
    deep = step + cache / CACHE_GB_S[kv] / 1e6
    whole = kv == "fp32"
    return Sample(
        shape,
        precision,
        kv,
        step,
        deep,
        chunk if whole else None,
        chunk + attention if whole else None,
    )


def solved() -> Found:
    shapes = [
        StackShape.of_widths(20, 512, 1536),
        StackShape.of_widths(9, 768, 2048),
        StackShape.of_widths(3, 1536, 4096),
    ]
    return solve(
        45.0, [sample(s, p, kv) for p in WEIGHTS_GB_S for s in shapes for kv in CACHE_GB_S]
    )


def test_recovers_what_made_the_times() -> None:
    found = solved()
    assert found.weights_gb_s == pytest.approx(WEIGHTS_GB_S)
    assert found.cache_gb_s == pytest.approx(CACHE_GB_S)
    assert found.matrices_tflops == pytest.approx(TFLOPS)
    assert found.attention_tflops == pytest.approx(ATTENTION_TFLOPS)
    assert found.layer_us == pytest.approx(1e3 * LAYER_MS)
    assert found.prompt_layer_us == pytest.approx(1e3 * CHUNK_LAYER_MS)
    assert found.worst == pytest.approx(0, abs=1e-9)


def test_no_cost_is_negative() -> None:
    # Wide layers slower than their bytes and narrow ones faster: a layer's cost would come out
    # below zero.
    shapes = [StackShape.of_widths(20, 512, 1536), StackShape.of_widths(3, 1536, 4096)]
    times = [1.0, 9.0]
    samples = [
        Sample(shape, "int4", kv, time, time + 1, time, time + 1)
        for shape, time in zip(shapes, times, strict=True)
        for kv in CACHE_GB_S
    ]
    found = solve(45.0, samples)
    assert found.layer_us == pytest.approx(0, abs=1e-6)
    assert found.weights_gb_s["int4"] > 0


def test_profile_predicts_with_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "edgelm.devices.planner.estimate.check_shape", lambda *_: None
    )  # a toy's heads
    path = tmp_path / "cpu.toml"
    path.write_text(profile_text(solved(), MACHINE, threads=2, when=date(2026, 1, 2)))
    profile = read_profile(path)
    assert profile.title == "this machine: A 'quoted' / processor, ONNX Runtime CPU"
    assert "2026-01-02 on 2 threads" in profile.sources["host"]
    spec = DecoderSpec.from_hf(CONFIG)
    planned = plan(spec, profile, PlanRequest("int4", kv="int8", context=32, prompt=16))
    # Every row of 8 or 16 weights is a group of 16 with its scale and zero point: 8, 2, 1 bytes.
    moved = 11 * (2 * (8 + 4 + 4 + 8 + 16 + 16 + 8) + 32)
    expected = moved / 25.0 / 1e6 + spec.kv_bytes_per_token(1) * 16 / 8.0 / 1e6
    expected += spec.num_hidden_layers * LAYER_MS + 0.1  # what a pass costs around its layers
    assert planned.decode_ms.value == pytest.approx(expected, rel=2e-3)


@pytest.mark.slow
def test_calibrates_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_STACK_BYTES", 1_000_000)
    monkeypatch.setattr(module, "_WIDTHS", ((192, 256), (384, 512)))
    monkeypatch.setattr(module, "read_gb_s", lambda threads: 10.0)
    monkeypatch.setattr(timing, "_ENOUGH_S", 0.0)
    monkeypatch.setattr(timing, "_REPEATS", 2)
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "mine"))
    lines: list[str] = []
    path = calibrate(None, threads=1, progress=lines.append)
    assert path == tmp_path / "mine" / "cpu.toml"
    assert load_profile("cpu").title.startswith("this machine: ")
    assert any("int8 weights, fp32 cache" in line for line in lines)
    assert not any("export EDGELM_PROFILES" in line for line in lines)


def test_no_folder_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    with pytest.raises(
        BadInput, match="no folder for the profile; give -o DIR, or set EDGELM_PROF"
    ):
        calibrate(None, threads=1, progress=print)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """Before two minutes of measuring."""
    (tmp_path / "file").touch()
    lines: list[str] = []
    with pytest.raises(BadInput, match=r"--output .*: .*/file is a file; expected a folder"):
        calibrate(tmp_path / "file" / "profiles", threads=1, progress=lines.append)
    assert lines == []


def test_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_bytes", lambda: 1_500_000_000)
    with pytest.raises(DoesNotFit, match=r"needs 3 GB of free memory, but only 1\.5 GB"):
        calibrate(tmp_path, threads=1, progress=print)
    assert list(tmp_path.iterdir()) == []
