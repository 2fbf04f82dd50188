"""A manifest's segments: in an order in which they run, together the whole graph."""

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from edgelm.bundle import (
    EngineFile,
    GraphContract,
    GraphSegment,
    Manifest,
    TensorContract,
    encode_manifest,
    graph_sha256,
    read_manifest,
    write_manifest,
)
from edgelm.bundle.files import engine_files, listed_graph_sha256, verify
from edgelm.errors import BadBundle
from tests.core.bundle.test_manifest_file import compiled

LINK = TensorContract("stream", "float16", (1, "T", 576))


def segmented() -> Manifest:
    """A graph in two segments, the second of which reads what the first gives."""
    whole = compiled()
    inputs, outputs = whole.graph.input_names, whole.graph.output_names
    layers = [name for name in outputs if name != "logits"]
    one = GraphSegment("model-1.onnx", inputs, (*layers, "stream"), 500)
    two = GraphSegment("model-2.onnx", ("positions", "stream"), ("logits",), 400)
    graph = replace(whole.graph, file="model-1.onnx", segments=(one, two), links=(LINK,))
    later = (EngineFile("engines/two.engine", "engines/two.cache"),)
    return replace(whole, graph=graph, engines=(replace(whole.engines[0], later_segments=later),))


def test_segments_come_back(tmp_path: Path) -> None:
    write_manifest(tmp_path, segmented())
    assert read_manifest(tmp_path) == segmented()
    assert engine_files(segmented()) == ["engines/sm87.engine", "engines/two.engine"]
    assert segmented().graph.files == ("model-1.onnx", "model-2.onnx", "model.onnx.data")


def test_a_whole_graph_is_one_part() -> None:
    [part] = compiled().graph.parts
    assert part.file == compiled().graph.file
    assert set(part.inputs) == set(compiled().graph.input_names)


def test_the_hash_of_a_graph_is_that_of_all_its_files(tmp_path: Path) -> None:
    graph = segmented().graph
    for name in graph.files:
        (tmp_path / name).write_text(name)
    before = graph_sha256(tmp_path, graph)
    for name in graph.files:
        (tmp_path / name).write_text("changed")
        assert graph_sha256(tmp_path, graph) != before
        (tmp_path / name).write_text(name)
    with pytest.raises(BadBundle, match=r"does not list model-1\.onnx"):
        listed_graph_sha256(segmented())
    with pytest.raises(BadBundle, match=r"does not list model-1\.onnx"):
        verify(tmp_path, segmented())


def change(graph: GraphContract, number: int, **given: object) -> GraphContract:
    segments = list(graph.segments)
    segments[number] = replace(segments[number], **given)
    return replace(graph, segments=tuple(segments))


Change = Callable[[GraphContract], GraphContract]
WRONG: dict[str, tuple[Change, str]] = {
    "order": (
        lambda g: replace(g, segments=g.segments[::-1], file="model-2.onnx"),
        "has the input 'stream', which is neither an input of the graph nor an output",
    ),
    "file": (lambda g: replace(g, file="model.onnx"), "graph.file is 'model.onnx', expected"),
    "same file": (lambda g: change(g, 1, file="model-1.onnx"), "have the same file"),
    "outside": (lambda g: change(g, 1, file="../model.onnx"), "lies outside the bundle"),
    "unknown output": (
        lambda g: change(g, 1, outputs=("logits", "extra")),
        "has the output 'extra'",
    ),
    "given twice": (
        lambda g: change(g, 1, outputs=("logits", "stream")),
        "has the output 'stream'",
    ),
    "no logits": (lambda g: change(g, 1, outputs=()), "no segment has the tensor 'logits'"),
    "input not taken": (
        lambda g: change(g, 0, inputs=[one for one in g.segments[0].inputs if one != "tokens"]),
        "no segment has the tensor 'tokens'",
    ),
    "link not read": (lambda g: change(g, 1, inputs=("positions",)), "no segment has .*'stream'"),
    "links alone": (lambda g: replace(g, segments=()), "graph.links has entries, but"),
    "link of unknown size": (
        lambda g: replace(g, links=(replace(LINK, shape=(1, "X", 576)),)),
        "has the size 'X', expected 1 to",
    ),
    "huge link": (
        lambda g: replace(g, links=(replace(LINK, shape=(1 << 40, "T")),)),
        "has the size 1099511627776",
    ),
    "link of unknown type": (
        lambda g: replace(g, links=(replace(LINK, dtype="object"),)),
        "is of type 'object', expected one of bfloat16, ",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_refused(name: str) -> None:
    wrong, message = WRONG[name]
    manifest = segmented()
    with pytest.raises(BadBundle, match=message):
        encode_manifest(replace(manifest, graph=wrong(manifest.graph)))


def test_an_engine_of_a_segment_outside_of_the_bundle() -> None:
    manifest = segmented()
    later = (EngineFile("../two.engine"),)
    engine = replace(manifest.engines[0], later_segments=later)
    with pytest.raises(BadBundle, match="lies outside the bundle"):
        encode_manifest(replace(manifest, engines=(engine,)))
