"""Decode steps of several sequences in one run: weights are read once for all of them."""

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Protocol

from edgelm.errors import DoesNotFit
from edgelm.runtime.engines.adapters import LoadedAdapter
from edgelm.runtime.engines.growth import rows_for
from edgelm.runtime.engines.onnxruntime.place_pool import PlacePool
from edgelm.runtime.engines.onnxruntime.run_times import RunTimes
from edgelm.runtime.engines.session import Logits

# Runs of the same sequences, scattered in memory, after which they are brought together.
_PATIENCE = 16


class NeighborRuns(Protocol):
    """Runs over sequences whose caches are neighbors in a pool."""

    def run(
        self,
        first: int,
        tokens: Sequence[int],
        pasts: Sequence[int],
        adapter: LoadedAdapter | None,
    ) -> Logits:
        """Append a token to each cache.

        Args:
            first: index of the first cache in the pool's memory.
            tokens: one for each.
            pasts: tokens that come before it.
            adapter: that all of them run with.

        Returns:
            Logits [len(tokens), 1, vocab_size], in memory of their own: several threads read them.
        """


class BatchedSteps:
    """One token of each of several sequences, whose caches are in one pool.

    Neighbors in the pool run together if they have the same adapter. Others take several runs; if
    the same ones run together again and again, their caches are moved.

    Args:
        runs: what runs neighbors.
        pool: the caches.
        capacity: tokens that a cache may grow to hold.
        times: what decides whether neighbors run together; None: they always do.
    """

    def __init__(
        self,
        runs: NeighborRuns,
        pool: PlacePool,
        *,
        capacity: int,
        times: RunTimes | None = None,
    ) -> None:
        self._runs, self._pool, self._times = runs, pool, times
        self._capacity = capacity
        # Neighbors that ran in this memory; their first run also binds and records a CUDA graph.
        self._memory, self._ran = pool.memory, set[tuple[int, int]]()
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
                for part in self._parts(group):
                    found = self._run_neighbors(part, [given[place] for place in part], adapter)
                    rows.update(zip(part, found, strict=True))
            return [rows[place] for place in places]

    def _parts(self, group: list[int]) -> list[list[int]]:
        """A group as one run, or as a run of each of its sequences where that is faster."""
        if self._times is None or self._times.pays(len(group)):
            return [group]
        return [[place] for place in group]

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
        tokens, pasts = [token for token, _ in given], [past for _, past in given]
        memory = self._pool.memory
        if memory is not self._memory:
            self._memory, self._ran = memory, set()
        first = memory.indices[group[0]]
        started = time.perf_counter()
        logits = self._runs.run(first, tokens, pasts, adapter)
        if self._times is not None and (first, len(group)) in self._ran:
            self._times.add(len(group), time.perf_counter() - started)
        self._ran.add((first, len(group)))
        return logits
