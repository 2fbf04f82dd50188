"""A graph that is cut into segments computes exactly what the whole one does."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgelm.bundle import GraphContract
from edgelm.bundle.segment_checks import check_segments
from edgelm.devices.planner.memory.build_memory import build_peak
from edgelm.export.graph.segments import BuildMemory
from edgelm.export.graph.write import GraphFormat, write_graph
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.weights import Weights
from edgelm.quantize.precision import PRECISIONS, Int4
from edgelm.runtime.engines.engine_session import EngineSession
from tests.conftest import TinyFactory
from tests.export.graphs import CONTEXT, DialectName, build_session, cpu_engine

TOKENS = np.random.default_rng(0).integers(3, 128, 50)
# Windows and caps, norms of queries and keys, two kinds of rotation, norms after the parts.
FAMILIES = ["llama-untied", "qwen3", "gemma3", "olmo2"]


def outputs(session: EngineSession) -> list[Any]:
    """Logits of a prefill in chunks, of steps, and of what follows a rewind."""
    rows = [session.advance(TOKENS[:37], logits=20).copy()]
    rows += [session.advance(TOKENS[at : at + 1]).copy() for at in range(37, 41)]
    session.rewind(30)
    rows.append(session.advance(TOKENS[41:50], logits=9).copy())
    return rows


def graph_of(session: EngineSession) -> GraphContract:
    return cpu_engine(session)._graph


@pytest.mark.parametrize("dialect", ["standard", "decomposed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_segments_in_a_row_equal_the_whole_graph(
    family: str, dialect: DialectName, tiny: TinyFactory, tmp_path: Path
) -> None:
    checkpoint = tiny(family).checkpoint
    with build_session(checkpoint, tmp_path / "whole", dialect=dialect) as session:
        expected = outputs(session)
    for count in (2, 3, 64):
        folder = tmp_path / str(count)
        with build_session(checkpoint, folder, dialect=dialect, segments=count) as session:
            check_segments(graph_of(session))
            assert len(graph_of(session).parts) == min(count, checkpoint.spec.num_hidden_layers + 2)
            for ours, whole in zip(outputs(session), expected, strict=True):
                assert np.array_equal(ours, whole)


def test_int4_in_segments_equals_the_whole_graph(tiny: TinyFactory, tmp_path: Path) -> None:
    source, int4 = tiny("llama").checkpoint, Int4(group_size=32, symmetric=True)
    rows = []
    for count in (1, 3):
        with build_session(
            source, tmp_path / str(count), int4, dialect="standard", segments=count
        ) as session:
            rows.append(outputs(session))
    assert all(np.array_equal(*pair) for pair in zip(*rows, strict=True))


def test_segments_share_the_weights_file_and_each_takes_its_own(
    tiny: TinyFactory, tmp_path: Path
) -> None:
    source = tiny("llama-untied").checkpoint
    with build_session(source, tmp_path, dialect="standard", segments=2) as session:
        graph = graph_of(session)
    assert graph.files == ("model-1.onnx", "model-2.onnx", "model.onnx.data")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(graph.files)
    models = [onnx.load(tmp_path / part.file, load_external_data=False) for part in graph.parts]
    named = [{one.name for one in model.graph.initializer} for model in models]
    matrices = [{name for name in names if name.endswith("qkv.weight")} for names in named]
    assert matrices[0]
    assert matrices[1]
    assert not matrices[0] & matrices[1]
    assert "embedding.weight" in named[0] - named[1]
    for part in graph.parts:
        onnx.checker.check_model(tmp_path / part.file)


def test_links_are_named_and_have_the_rows_of_tokens_or_logits(
    tiny: TinyFactory, tmp_path: Path
) -> None:
    source = tiny("llama").checkpoint
    with build_session(source, tmp_path, dialect="standard", segments=64) as session:
        graph = graph_of(session)
    hidden = source.spec.hidden_size
    shapes = [link.shape for link in graph.links]
    assert shapes[0] == (1, "T", hidden)
    assert shapes[-1] == (1, "P", hidden), "the head computes the requested rows only"
    assert {link.dtype for link in graph.links} == {"float32"}


def test_as_many_segments_as_the_memory_needs(tiny: TinyFactory, tmp_path: Path) -> None:
    weights = Weights(tiny("llama-untied").checkpoint)
    precision = dict.fromkeys(weights.groups(), PRECISIONS["fp32"])

    def count(available: int) -> int:
        memory = BuildMemory("tensorrt-rtx", available)
        form = GraphFormat("standard", "fp32", "fp32", CONTEXT, segments=memory)
        graph = write_graph(tmp_path, Quantizer(weights), precision, form).contract
        return len(graph.parts)

    whole = build_peak("tensorrt-rtx", [sum(_bytes(weights))])
    assert count(whole + 100_000) == 1
    assert count(whole - 100_000) == 2
    assert count(1) == weights.checkpoint.spec.num_hidden_layers + 2, "what comes nearest"


def _bytes(weights: Weights) -> list[int]:
    return [4 * int(np.prod(weights.shape(group))) for group in weights.groups()]
