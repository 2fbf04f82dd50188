"""Whether a graph has the inputs and outputs of the manifest.

Sessions bind memory of the sizes that the manifest gives: were the graph's others, the error would
come with the first token, name nothing that a user knows, or not come at all.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edgelm.bundle import (
    CacheContract,
    CacheLayer,
    GraphContract,
    GraphSegment,
    TensorContract,
)
from edgelm.bundle.roles import HIDDEN
from edgelm.errors import BadBundle, BadInput

_CACHE_TYPES = {
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "int8": "int8",
    "fp8": "float8e4m3fn",
}
# As ONNX Runtime writes them, where that is not the manifest's name.
_ORT_TYPES = {"float": "float32"}


class Tensor(NamedTuple):
    """An input or output of a graph; a size that is not fixed is None."""

    dtype: str
    shape: tuple[int | None, ...]


def vocab_size(graph: GraphContract) -> int:
    """Logits (or hidden states) per token; manifests are read only if it is a number there."""
    return int(output(graph).shape[-1])


def output(graph: GraphContract) -> TensorContract:
    """The graph's logits, or an embedding model's hidden states."""
    return graph.outputs.get("logits") or graph.outputs[HIDDEN]


def hidden_size(graph: GraphContract) -> int:
    """Numbers of a hidden state, of a graph that gives them."""
    return int(graph.outputs[HIDDEN].shape[-1])


def check_capacity(cache: CacheContract, capacity: int) -> None:
    """Raise BadInput where a graph fixes another capacity of the cache than is requested."""
    if cache.capacity not in (None, capacity):
        raise BadInput(
            f"the context of this bundle is fixed at {cache.capacity}, but {capacity} was "
            "requested; export it again with --context"
        )


def check_ort_graph(session: Any, graph: GraphContract, part: GraphSegment, path: Path) -> None:
    """Compare an ONNX Runtime session of a graph, or of a segment, with the contract.

    Raises:
        BadBundle: a name, type, rank or fixed size differs.
    """
    inputs, outputs = (_of_ort(found) for found in (session.get_inputs(), session.get_outputs()))
    check_tensors(graph, part, inputs, outputs, str(path))
    if graph.low_rank:
        optional = _of_ort(session.get_overridable_initializers())
        _compare("optional input", optional, _expected_factors(graph), str(path))


def check_tensors(
    graph: GraphContract,
    part: GraphSegment,
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
    where: str,
) -> None:
    """Compare the inputs and outputs of a graph, or of a segment, with the contract.

    Raises:
        BadBundle: a name, type, rank or fixed size differs; the message begins with `where`.
    """
    _compare("input", inputs, _only(part.inputs, _expected_inputs(graph)), where)
    _check_batch(graph, inputs, where)
    _check_rows(graph, inputs, where)
    _compare("output", outputs, _only(part.outputs, _expected_outputs(graph)), where)


def _expected_factors(graph: GraphContract) -> dict[str, Tensor]:
    expected = {}
    for one in graph.low_rank:
        expected[one.down] = Tensor("float32", (one.inputs, None))
        expected[one.up] = Tensor("float32", (None, None))
    return expected


def _only(names: Iterable[str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensors[name] for name in names}


def _expected_inputs(graph: GraphContract) -> dict[str, Tensor]:
    given = (*graph.inputs.values(), *graph.links)
    expected = {one.name: _contract(one.dtype, one.shape) for one in given}
    for layer in graph.cache.layers:
        cache = _cache(graph, layer, layer.rows or graph.cache.capacity)
        expected[layer.past_key] = expected[layer.past_value] = cache
    for state in graph.cache.states:
        expected[state.past] = Tensor(state.dtype, (1, *state.shape))
    # A segment may read the rows that an earlier one has written (Gemma 4).
    return _expected_outputs(graph) | expected


def _expected_outputs(graph: GraphContract) -> dict[str, Tensor]:
    given = (*graph.outputs.values(), *graph.links)
    expected = {one.name: _contract(one.dtype, one.shape) for one in given}
    in_place = graph.cache.update == "in_place"
    for layer in graph.cache.layers:
        cache = _cache(graph, layer, layer.rows or (graph.cache.capacity if in_place else None))
        expected[layer.present_key] = expected[layer.present_value] = cache
    for state in graph.cache.states:
        expected[state.present] = Tensor(state.dtype, (1, *state.shape))
    return expected


def _contract(dtype: str, shape: tuple[int | str, ...]) -> Tensor:
    return Tensor(dtype, tuple(size if isinstance(size, int) else None for size in shape))


def _cache(graph: GraphContract, layer: CacheLayer, rows: int | None) -> Tensor:
    heads, dim = graph.cache.heads(layer)
    batch = None if graph.takes_batches else 1
    return Tensor(_CACHE_TYPES[graph.cache.dtype], (batch, heads, rows, dim))


def _check_batch(graph: GraphContract, inputs: Mapping[str, Tensor], where: str) -> None:
    """A graph whose manifest says that it takes several sequences must have open sizes there."""
    if not graph.takes_batches:
        return
    roles = ("tokens", "positions", "past_length", "last_position")
    names = [graph.inputs[role].name for role in roles if role in graph.inputs]
    names += [name for one in graph.cache.layers for name in (one.past_key, one.past_value)]
    for name in names:
        tensor = inputs.get(name)
        if tensor is not None and tensor.shape[0] is not None:
            raise BadBundle(
                f"{where} has the input {name!r} of {_described(tensor)}, the manifest says that "
                f"it takes any number of sequences; {_AGAIN}"
            )


def _check_rows(graph: GraphContract, inputs: Mapping[str, Tensor], where: str) -> None:
    """A cache that holds all tokens, in a graph without a capacity, must be open to grow."""
    if graph.cache.capacity is not None:
        return
    whole = (one for one in graph.cache.layers if one.rows is None)
    for name in (name for one in whole for name in (one.past_key, one.past_value)):
        tensor = inputs.get(name)
        if tensor is not None and tensor.shape[2] is not None:
            raise BadBundle(
                f"{where} has the input {name!r} of {_described(tensor)}, the manifest says that "
                f"it grows with its tokens; {_AGAIN}"
            )


def _compare(
    kind: str, given: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str
) -> None:
    for name in sorted(expected.keys() - given.keys()):
        raise BadBundle(f"{where} has no {kind} {name!r}, which the manifest names; {_AGAIN}")
    for name in sorted(given.keys() - expected.keys()):
        raise BadBundle(f"{where} has an {kind} {name!r} that the manifest lacks; {_AGAIN}")
    for name, tensor in given.items():
        wanted = expected[name]
        if tensor.dtype != wanted.dtype or not _agree(tensor.shape, wanted.shape):
            raise BadBundle(
                f"{where} has the {kind} {name!r} of {_described(tensor)}, the manifest says "
                f"{_described(wanted)}; {_AGAIN}"
            )


def _agree(given: tuple[int | None, ...], wanted: tuple[int | None, ...]) -> bool:
    """Whether ranks are equal, and sizes where both are fixed; an open one takes any."""
    return len(given) == len(wanted) and all(
        None in pair or pair[0] == pair[1] for pair in zip(given, wanted, strict=True)
    )


def _of_ort(found: Iterable[Any]) -> dict[str, Tensor]:
    return {one.name: Tensor(_ort_type(one.type), _ort_shape(one.shape)) for one in found}


def _ort_type(text: str) -> str:
    inner = re.fullmatch(r"tensor\((\w+)\)", text)
    name = inner[1] if inner else text
    return _ORT_TYPES.get(name, name)


def _ort_shape(shape: Iterable[Any]) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in shape)


def _described(tensor: Tensor) -> str:
    sizes = ", ".join("any" if size is None else str(size) for size in tensor.shape)
    return f"{tensor.dtype} [{sizes}]"


_AGAIN = "copy or export the bundle again"
