"""Graphs of opset 24 need an ONNX Runtime newer than the last one for Python 3.10."""

from pathlib import Path

import msgspec
import pytest

from edgelm.bundle import read_manifest
from edgelm.bundle.manifest import StateTensor
from edgelm.errors import MissingPackage
from edgelm.runtime.engines.onnxruntime.ort_version import check_version
from edgelm.spec.layers.mixers import StateKind


@pytest.mark.parametrize(
    ("version", "opset"), [("1.23.2", 23), ("1.24.0", 24), ("1.32.0", 24), ("2.0.0rc1", 24)]
)
def test_versions_that_know_the_opset(bundle: Path, version: str, opset: int) -> None:
    graph = read_manifest(bundle).graph
    check_version(version, msgspec.structs.replace(graph, opsets={"ai.onnx": opset}))


def test_the_error_names_both_ways_out(bundle: Path) -> None:
    graph = read_manifest(bundle).graph
    with pytest.raises(MissingPackage, match=r"opset 24, which needs ONNX Runtime 1\.27, but 1\.2"):
        check_version("1.23.2", msgspec.structs.replace(graph, opsets={"ai.onnx": 24}))


def test_fp32_bundles_also_run_on_the_last_one_for_python_3_10(bundle: Path) -> None:
    check_version("1.23.2", read_manifest(bundle).graph)


@pytest.mark.parametrize("version", ["1.23.2", "1.25.1", "1.26.0", "1.27.0", "1.32.0"])
def test_eight_bit_caches_need_one_whose_attention_runs(bundle: Path, version: str) -> None:
    graph = read_manifest(bundle).graph
    eight = msgspec.structs.replace(
        graph, cache=msgspec.structs.replace(graph.cache, dtype="int8"), opsets={"ai.onnx": 24}
    )
    if version in ("1.27.0", "1.32.0"):
        check_version(version, eight)
    else:
        message = r"cache is int8, which needs ONNX Runtime 1\.27.*--kv fp32"
        with pytest.raises(MissingPackage, match=message):
            check_version(version, eight)


@pytest.mark.parametrize(
    ("kind", "version", "runs"),
    [("conv", "1.23.2", True), ("matrix", "1.29.0", False), ("matrix", "1.30.0", True)],
)
def test_only_matrix_states_need_a_newer_one(
    bundle: Path, kind: StateKind, version: str, runs: bool
) -> None:
    """Convolutions are written in operators that every version has."""
    graph = read_manifest(bundle).graph
    state = StateTensor(0, kind, "float32", (2, 4), "past", "present")
    recurrent = msgspec.structs.replace(
        graph, cache=msgspec.structs.replace(graph.cache, states=(state,))
    )
    if runs:
        check_version(version, recurrent)
    else:
        with pytest.raises(
            MissingPackage, match=r"recurrent layers, which need .* 1\.30, but 1\.29"
        ):
            check_version(version, recurrent)


def test_windowed_caches_need_a_newer_one(bundle: Path) -> None:
    graph = read_manifest(bundle).graph
    [first, *others] = graph.cache.layers
    cut = (msgspec.structs.replace(first, rows=24, window=8), *others)
    windowed = msgspec.structs.replace(
        graph, cache=msgspec.structs.replace(graph.cache, layers=cut), opsets={"ai.onnx": 24}
    )
    check_version("1.30.0", windowed)
    message = r"keep only their window.*1\.30, but 1\.29.*--kv fp32 --context 96"
    with pytest.raises(MissingPackage, match=message):
        check_version("1.29.1", windowed)
