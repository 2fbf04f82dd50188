"""Runs over neighbors in a cache pool on ONNX Runtime's CUDA provider, recorded as CUDA graphs."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgelm.bundle import GraphContract
from edgelm.errors import BadInput
from edgelm.runtime.engines.adapters import LoadedAdapter
from edgelm.runtime.engines.graph_check import vocab_size
from edgelm.runtime.engines.growth import rows_read
from edgelm.runtime.engines.onnxruntime.cuda.bound_step import BoundStep
from edgelm.runtime.engines.onnxruntime.cuda.gpu_pool import GpuPool
from edgelm.runtime.engines.session import Logits
from edgelm.runtime.engines.step_inputs import StepInputs, batch_inputs, update_batch

# ONNX Runtime releases recorded graphs with their session only, and every combination of neighbors
# and size of their caches has one. Beyond as many as these, runs are not recorded.
_MAX_GRAPHS = 64


class GpuNeighbors:
    """See NeighborRuns. Each combination of neighbors is bound once.

    Args:
        session: of the graph.
        graph: the graph, which has a batch axis.
        pool: the caches.
        capacity: tokens that a cache may grow to hold.
        next_graph_id: the number of a CUDA graph to be recorded.
    """

    def __init__(
        self,
        session: Any,
        graph: GraphContract,
        pool: GpuPool,
        *,
        capacity: int,
        next_graph_id: Callable[[], int],
    ) -> None:
        self._session, self._graph, self._pool = session, graph, pool
        self._capacity = capacity
        self._vocab_size = vocab_size(graph)
        self._next_graph_id = next_graph_id
        self._recorded = 0
        self._memory = pool.memory
        self._bound: dict[tuple[int, int, int], _Bound] = {}

    def run(
        self,
        first: int,
        tokens: Sequence[int],
        pasts: Sequence[int],
        adapter: LoadedAdapter | None,
    ) -> Logits:
        """Append a token to each cache."""
        if adapter is not None:
            raise BadInput("this engine takes no adapters; use a bundle for ONNX Runtime's CPU")
        rows = rows_read(self._graph, max(pasts) + 1, self._capacity)
        bound = self._binding(first, len(tokens), rows)
        update_batch(bound.inputs, tokens, pasts)
        bound.step.update(bound.inputs)
        # A copy: on a CPU, in tests, numpy() gives a view.
        return bound.step.run().copy()

    def _binding(self, first: int, count: int, rows: int) -> "_Bound":
        memory = self._pool.memory
        if memory is not self._memory:
            self._bound.clear()
            self._memory = memory
        key = first, count, rows
        if key not in self._bound:
            inputs = batch_inputs(count)
            # Read only while the graph is recorded: so it is the largest value that it can have,
            # in memory of its own, since `update_batch` changes that of the inputs.
            recorded = {"total_length": np.array(rows or memory.rows, dtype=np.int32)}
            if "cache_positions" in self._graph.inputs:
                inputs["cache_positions"] = np.arange(rows, dtype=np.int64)
            cache = memory.views(first, count)
            step = BoundStep(
                self._session,
                self._graph,
                inputs | recorded,
                cache,
                cache,
                logits=(count, 1, self._vocab_size),
                graph_id=self._graph_id(),
            )
            self._bound[key] = _Bound(inputs, step)
        return self._bound[key]

    def _graph_id(self) -> int | None:
        if self._recorded == _MAX_GRAPHS:
            return None
        self._recorded += 1
        return self._next_graph_id()


class _Bound(NamedTuple):
    """A run of a number of neighbors, to be repeated with other tokens."""

    inputs: StepInputs
    step: BoundStep
