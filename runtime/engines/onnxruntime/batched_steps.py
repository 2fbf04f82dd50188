"""Decode steps of several sequences in one run: weights are read once for all of them."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from edgelm.bundle import GraphContract
from edgelm.errors import DoesNotFit
from edgelm.runtime.engines.adapters import LoadedAdapter
from edgelm.runtime.engines.graph_check import vocab_size
from edgelm.runtime.engines.growth import rows_for
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
from edgelm.runtime.engines.step_inputs import StepInputs, batch_inputs

# Runs of the same sequences, scattered in memory, after which they are brought together.
_PATIENCE = 16


class BatchedSteps:
    """One token of each of several sequences, whose caches are in one pool.

    Neighbors in the pool run together if they have the same adapter. Others take several runs; if
    the same ones run together again and again, their caches are moved.

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
        self._bound: dict[tuple[int, int, LoadedAdapter | None], _Bound] = {}
        self._scattered: frozenset[int] = frozenset()
        self._scattered_runs = 0

    def run(
        self,
        places: Sequence[int],
        tokens: Sequence[int],
        pasts: Sequence[int],
        adapters: Sequence[LoadedAdapter | None],
    ) -> list[Logits]:
        """Append a token to each of several sequences; see BatchedRuns."""
        with self._pool.lock:
            longest = max(pasts) + 1
            if longest > self._pool.memory.rows:
                self._pool.grow(rows_for(longest, self._capacity))
            for place, past in zip(places, pasts, strict=True):
                self._pool.wrote(place, past + 1)
            rows: dict[int, Logits] = {}
            given = dict(zip(places, zip(tokens, pasts, strict=True), strict=True))
            chosen = dict(zip(places, adapters, strict=True))
            for group in self._groups(chosen):
                adapter = chosen[group[0]]
                found = self._run_neighbors(group, [given[place] for place in group], adapter)
                rows.update(zip(group, found, strict=True))
            return [rows[place] for place in places]

    def _groups(self, places: Mapping[int, LoadedAdapter | None]) -> list[list[int]]:
        """Places that are neighbors with the same adapter, in the order of memory."""
        groups = list(self._neighbors(places))
        if len(groups) == len(set(places.values())):
            self._scattered_runs = 0
            return groups
        same = self._scattered == frozenset(places)
        self._scattered_runs = self._scattered_runs + 1 if same else 1
        self._scattered = frozenset(places)
        if self._scattered_runs < _PATIENCE:
            return groups
        self._scattered_runs = 0
        try:
            first = {adapter: n for n, adapter in enumerate(dict.fromkeys(places.values()))}
            listed = [place for group in groups for place in group]
            self._pool.bring_together(sorted(listed, key=lambda place: first[places[place]]))
        except DoesNotFit:
            return groups
        return list(self._neighbors(places))

    def _neighbors(self, places: Mapping[int, LoadedAdapter | None]) -> Iterator[list[int]]:
        indices = self._pool.memory.indices
        ordered = sorted(places, key=indices.__getitem__)
        group = ordered[:1]
        for before, place in pairwise(ordered):
            if indices[place] != indices[before] + 1 or places[place] is not places[before]:
                yield group
                group = []
            group.append(place)
        yield group

    def _run_neighbors(
        self, group: list[int], given: list[tuple[int, int]], adapter: LoadedAdapter | None
    ) -> Logits:
        """Logits [places, 1, vocab_size], in memory of their own: several threads read them."""
        bound = self._binding(self._pool.memory.indices[group[0]], len(group), adapter)
        inputs = bound.inputs
        inputs["tokens"][:, 0] = [token for token, _ in given]
        pasts = [past for _, past in given]
        inputs["past_length"][:] = pasts
        inputs["last_position"][:] = pasts
        inputs["total_length"][()] = max(pasts) + 1
        logits: Logits = np.empty((len(group), 1, self._vocab_size), dtype=np.float32)
        bind_output(bound.bindings[-1].io, self._graph.outputs["logits"].name, logits)
        run_bound(self._sessions, bound.bindings)
        return logits

    def _binding(self, first: int, count: int, adapter: LoadedAdapter | None) -> "_Bound":
        memory = self._pool.memory
        if memory is not self._memory:
            self._bound.clear()
            self._memory = memory
        key = first, count, adapter
        if key not in self._bound:
            graph, cache = self._graph, memory.views(first, count)
            inputs = batch_inputs(count)
            arrays = input_arrays(graph, inputs) | cache_arrays(graph, cache, cache)
            arrays[graph.outputs["logits"].name] = np.empty(
                (count, 1, self._vocab_size), dtype=np.float32
            )
            if adapter is not None:
                arrays |= adapter.arrays
            bindings = bind(self._sessions, graph, arrays, {})
            self._bound[key] = _Bound(inputs, bindings)
        return self._bound[key]


class _Bound(NamedTuple):
    """A run of a number of neighbors, to be repeated with other tokens."""

    inputs: StepInputs
    bindings: Bindings
