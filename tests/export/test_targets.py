"""Exports for GPUs: the right dialect, types and engine for each, checked on the CPU."""

from pathlib import Path
from typing import Any

import pytest

from edgelm.bundle import Manifest, graph_sha256, verify
from edgelm.bundle.records.gate_sample import read_sample
from edgelm.errors import BadInput, UnknownName
from edgelm.export.pipeline import export_model
from edgelm.quantize.precision import Int4, Int8
from tests.checkpoints.tiny_chat import save_tiny_chat
from tests.slow import slow_but

FP16: dict[str, Any] = {"precision": "fp16"}


def exported(source: Path, folder: Path, target: str, **options: Any) -> Manifest:
    manifest = export_model(source, folder / "bundle", target=target, **options)
    verify(folder / "bundle", manifest)
    assert manifest.gate is not None
    assert manifest.gate.passed
    return manifest


@pytest.mark.parametrize(
    ("target", "engine", "expected"),
    slow_but(
        [
            ("jetson-orin", None, ("tensorrt", "standard", (87,))),
            ("jetson-orin", "tensorrt-10.3", ("tensorrt", "decomposed", (87,))),
            ("jetson-thor", None, ("tensorrt", "standard", (110,))),
            ("jetson-thor", "tensorrt-10.13", ("tensorrt", "decomposed", (110,))),
            ("jetson-agx-xavier", None, ("tensorrt", "decomposed", (72,))),
            ("laptop-rtx-4060", None, ("tensorrt-rtx", "standard", (89,))),
            ("laptop-rtx-4060", "onnxruntime-cuda", ("onnxruntime-cuda", "ort", (89,))),
        ],
        [
            ("jetson-orin", None, ("tensorrt", "standard", (87,))),
            ("jetson-thor", "tensorrt-10.13", ("tensorrt", "decomposed", (110,))),
            ("laptop-rtx-4060", None, ("tensorrt-rtx", "standard", (89,))),
        ],
    ),
)
def test_every_kind_of_target(
    target: str,
    engine: str | None,
    expected: tuple[str, str, tuple[int, ...]],
    tiny_chat: Path,
    tmp_path: Path,
) -> None:
    manifest = exported(tiny_chat, tmp_path, target, engine=engine, context=64)
    need = manifest.engine
    assert (need.name, manifest.graph.dialect, need.compute_capabilities) == expected
    assert manifest.kv == "fp16"
    assert manifest.pending == (need.name == "tensorrt")
    folder = tmp_path / "bundle"
    own = graph_sha256(folder, manifest.graph)
    assert manifest.check is not None
    assert manifest.check.graph_sha256 == manifest.check.checked_sha256 == own
    assert all(one.graph_sha256 == own for one in manifest.engines)
    sample = read_sample(folder, manifest)
    assert sample is not None
    assert sample.tokens.shape[1] <= 64
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_one_engine_for_several_gpus(tiny_chat: Path, tmp_path: Path) -> None:
    manifest = exported(
        tiny_chat, tmp_path, "laptop-rtx-4060", precision="fp16", compute_capabilities=[120, 86, 86]
    )
    [engine] = manifest.engines
    assert engine.compute_capabilities == manifest.engine.compute_capabilities == (86, 120)
    assert engine.file in manifest.files
    assert engine.file.startswith("engines/sm86-sm120-rtx1.")
    assert engine.runtime_cache not in manifest.files


ON_CUDA = {"engine": "onnxruntime-cuda"}


@pytest.mark.parametrize(
    ("target", "options", "widened"),
    slow_but(
        [
            ("laptop-rtx-4060", {"precision": "fp16"}, False),
            ("laptop-rtx-4060", {"precision": "bf16"}, True),
            ("laptop-rtx-4060", {"precision": "bf16", **ON_CUDA}, True),
            ("laptop-rtx-4060", {"precision": "int8"}, False),
            ("laptop-rtx-4060", {"precision": "int8", "kv": "int8", **ON_CUDA}, False),
            ("laptop-rtx-4060", {"precision": "int8", "kv": "fp8", "gate": "off", **ON_CUDA}, True),
            (
                "laptop-rtx-4060",
                {"precision": "bf16", "kv": "int8", "gate": "off", **ON_CUDA},
                True,
            ),
            ("laptop-rtx-4060", {"precision": "fp8", "gate": "off"}, False),
            ("laptop-rtx-4060", {"precision": "w8a8", "gate": "off"}, False),
            ("rtx-5090-laptop", {"precision": "nvfp4", "gate": "off"}, True),
        ],
        [
            ("laptop-rtx-4060", {"precision": "fp16"}, False),
            ("laptop-rtx-4060", {"precision": "int8", "kv": "int8", **ON_CUDA}, False),
            ("laptop-rtx-4060", {"precision": "w8a8", "gate": "off"}, False),
        ],
    ),
)
@pytest.mark.usefixtures("whole_texts")
def test_every_precision(
    target: str, options: dict[str, Any], widened: bool, tiny_chat: Path, tmp_path: Path
) -> None:
    manifest = export_model(tiny_chat, tmp_path / "bundle", target=target, context=64, **options)
    assert manifest.check is not None
    assert manifest.check.dequantized == widened
    assert (manifest.check.graph_sha256 == manifest.check.checked_sha256) != widened
    assert manifest.gate is not None
    limits = {"fp16": 1e-4, "bf16": 1e-3, "int8": 0.01, "fp8": 0.05, "w8a8": 0.1, "nvfp4": 0.3}
    assert manifest.gate.figures.kl < limits[options["precision"]]


@pytest.mark.slow
def test_auto_beside_a_cache_of_8_bits(tiny_chat: Path, tmp_path: Path) -> None:
    manifest = export_model(
        tiny_chat,
        tmp_path / "b",
        target="laptop-rtx-4060",
        engine="onnxruntime-cuda",
        kv="int8",
        context=64,
    )
    assert (manifest.kv, manifest.graph.cache.dtype) == ("int8", "int8")
    assert manifest.gate is not None
    assert manifest.gate.passed


@pytest.mark.slow
def test_gemma_gets_the_range_of_bf16(tmp_path: Path) -> None:
    source = save_tiny_chat(tmp_path / "source", "gemma2")
    manifest = export_model(source, tmp_path / "b", target="jetson-thor", gate="off", context=64)
    assert manifest.kv == manifest.graph.cache.dtype == "bf16"


def test_groups_that_fit_the_shapes(tiny_chat: Path, tmp_path: Path) -> None:
    """The tiny model's 96 inputs take no group of 64: that matrix falls back to 8 bits."""
    manifest = export_model(
        tiny_chat, tmp_path / "b", target="jetson-orin", precision="int4", gate="off", context=64
    )
    assert manifest.precision["layers.0.mlp.down"] == Int8(group_size=0)
    assert manifest.precision["layers.0.attention.qkv"] == Int4(group_size=64, symmetric=True)


@pytest.mark.parametrize(
    ("target", "options", "error", "message"),
    [
        ("jetson-orin", {"compute_capabilities": [87]}, BadInput, "--sm goes with tensorrt-rtx"),
        (
            "laptop-rtx-4060",
            {"compute_capabilities": [87]},
            UnknownName,
            "does not compile for SM 87; it has 75",
        ),
        ("laptop-rtx-4060", {"precision": "nvfp4"}, UnknownName, "has no nvfp4 with tensorrt-rtx"),
        ("jetson-orin", {"precision": "fp8"}, UnknownName, "has no fp8 with tensorrt; it has auto"),
        (
            "jetson-orin",
            {"kv": "int8"},
            UnknownName,
            r"has no int8 cache with tensorrt; it has fp16 \(int8 with --engine onnxruntime-cuda\)",
        ),
        ("jetson-orin", {"engine": "warp"}, UnknownName, "has no engine 'warp'; it has tensorrt,"),
        (
            "jetson-orin",
            {"precision": "int4", "group_size": 128},
            UnknownName,
            r"layers\.0\.attention\.qkv has 64 inputs, which is not a multiple of",
        ),
        (
            "jetson-orin",
            {"precision": "int4", "symmetric": False},
            UnknownName,
            "TensorRT has no zero points; leave out --no-symmetric",
        ),
    ],
)
def test_refusals(
    target: str,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    tiny_chat: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=message):
        export_model(
            tiny_chat, tmp_path / "b", target=target, context=64, **{"precision": "fp16", **options}
        )
    assert list(tmp_path.iterdir()) == []
