"""Bindings of ONNX Runtime: addresses of a run's inputs and outputs, for each part of a graph."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from edgelm.bundle import GraphContract
from edgelm.errors import BadBundle, DoesNotFit
from edgelm.reasons import reason
from edgelm.runtime.engines.onnxruntime.cache_pool import CacheArrays
from edgelm.runtime.engines.step_inputs import StepInputs


class Binding(NamedTuple):
    """A binding of ONNX Runtime, which holds addresses only, and the arrays at them."""

    io: Any
    arrays: dict[str, Any]


Bindings = list[Binding]


def cache_arrays(graph: GraphContract, past: CacheArrays, present: CacheArrays) -> dict[str, Any]:
    """Keys and values before and after a run, by the names of their tensors."""
    arrays: dict[str, Any] = {}
    for layer, before, after in zip(graph.cache.layers, past, present, strict=True):
        arrays[layer.past_key], arrays[layer.past_value] = before
        arrays[layer.present_key], arrays[layer.present_value] = after
    return arrays


def input_arrays(graph: GraphContract, inputs: StepInputs) -> dict[str, Any]:
    """A step's inputs, by the names of their tensors; those that the graph has."""
    return {tensor.name: inputs[role] for role, tensor in graph.inputs.items() if role in inputs}


def bind(
    sessions: list[Any], graph: GraphContract, arrays: Mapping[str, Any], sizes: Mapping[str, int]
) -> Bindings:
    """Bind arrays to the parts of a graph, by name.

    What passes from one segment to the next gets memory, of these sizes, which lives as long as the
    bindings. Optional inputs, which adapters have, are bound where arrays are given for them.
    """
    everything = {**arrays, **_new_links(graph, sizes)}
    bindings = []
    for session, part in zip(sessions, graph.parts, strict=True):
        io = session.io_binding()
        for name in part.inputs:
            array = everything[name]
            _bind_input(io, name, array)
        if len(sessions) == 1:
            for name in _optional_inputs(graph) & everything.keys():
                _bind_input(io, name, everything[name])
        for name in part.outputs:
            bind_output(io, name, everything[name])
        bindings.append(Binding(io, everything))
    return bindings


def _optional_inputs(graph: GraphContract) -> set[str]:
    return {name for one in graph.low_rank for name in (one.down, one.up)}


def _bind_input(io: Any, name: str, array: Any) -> None:
    io.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def bind_output(io: Any, name: str, array: Any) -> None:
    """Bind an array to an output, in place of another one."""
    io.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def run_bound(sessions: list[Any], bindings: Bindings, options: Any = None) -> None:
    """Run all parts of a graph.

    Raises:
        DoesNotFit: there is no memory for it.
        BadBundle: ONNX Runtime refuses the graph.
    """
    try:
        for session, binding in zip(sessions, bindings, strict=True):
            session.run_with_iobinding(binding.io, options)
    except Exception as error:  # the base of what ONNX Runtime raises
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise DoesNotFit(f"not enough memory to run this bundle: {reason(error)}") from None
        raise BadBundle(
            f"ONNX Runtime cannot run this bundle's graph: {reason(error)}; check "
            "its files (edge-export --verify), then export it again"
        ) from None


def _new_links(graph: GraphContract, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Memory for what passes between segments, by name."""
    return {
        link.name: np.empty(
            [size if isinstance(size, int) else sizes[size] for size in link.shape],
            np.uint16 if link.dtype == "bfloat16" else link.dtype,
        )
        for link in graph.links
    }
