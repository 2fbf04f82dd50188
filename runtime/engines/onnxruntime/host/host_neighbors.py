"""Runs over neighbors in a cache pool on ONNX Runtime's CPU provider."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from edgelm.bundle import GraphContract
from edgelm.runtime.engines.adapters import LoadedAdapter
from edgelm.runtime.engines.graph_check import output, vocab_size
from edgelm.runtime.engines.growth import rows_read
from edgelm.runtime.engines.onnxruntime.bindings import (
    Bindings,
    bind,
    bind_output,
    cache_arrays,
    input_arrays,
    run_bound,
)
from edgelm.runtime.engines.onnxruntime.cache_pool import CachePool
from edgelm.runtime.engines.session import Logits
from edgelm.runtime.engines.step_inputs import StepInputs, batch_inputs, update_batch


class HostNeighbors:
    """See NeighborRuns. Each combination of neighbors is bound once.

    Args:
        sessions: the graph's parts, loaded.
        graph: the graph, which has a batch axis.
        pool: the caches.
        capacity: tokens that a cache may grow to hold.
    """

    def __init__(
        self, sessions: list[Any], graph: GraphContract, pool: CachePool, *, capacity: int
    ) -> None:
        self._sessions, self._graph, self._pool = sessions, graph, pool
        self._capacity = capacity
        self._vocab_size = vocab_size(graph)
        self._memory = pool.memory
        self._bound: dict[tuple[int, int, int, LoadedAdapter | None], _Bound] = {}

    def run(
        self,
        first: int,
        tokens: Sequence[int],
        pasts: Sequence[int],
        adapter: LoadedAdapter | None,
    ) -> Logits:
        """Append a token to each cache."""
        rows = rows_read(self._graph, max(pasts) + 1, self._capacity)
        bound = self._binding(first, len(tokens), rows, adapter)
        update_batch(bound.inputs, tokens, pasts)
        logits: Logits = np.empty((len(tokens), 1, self._vocab_size), dtype=np.float32)
        bind_output(bound.bindings[-1].io, output(self._graph).name, logits)
        run_bound(self._sessions, bound.bindings)
        return logits

    def _binding(
        self, first: int, count: int, rows: int, adapter: LoadedAdapter | None
    ) -> "_Bound":
        memory = self._pool.memory
        if memory is not self._memory:
            self._bound.clear()
            self._memory = memory
        key = first, count, rows, adapter
        if key not in self._bound:
            graph, cache = self._graph, memory.views(first, count)
            inputs = batch_inputs(count)
            if "cache_positions" in graph.inputs:
                inputs["cache_positions"] = np.arange(rows, dtype=np.int64)
            arrays = input_arrays(graph, inputs) | cache_arrays(graph, cache, cache)
            arrays[output(graph).name] = np.empty((count, 1, self._vocab_size), dtype=np.float32)
            if adapter is not None:
                arrays |= adapter.arrays
            sizes = {"B": count, "T": 1, "P": 1}
            self._bound[key] = _Bound(inputs, bind(self._sessions, graph, arrays, sizes))
        return self._bound[key]


class _Bound(NamedTuple):
    """A run of a number of neighbors, to be repeated with other tokens."""

    inputs: StepInputs
    bindings: Bindings
