"""ONNX Runtime on a CPU: one cache, bound in place, and no copies per token.

Past and present of a layer are bound to the same memory, so a token costs one row written, not a
cache copied. Decoding reuses one binding: only five numbers in bound memory change per step. So do
speculative steps, with a binding for each number of tokens. The cache grows with its tokens, which
binds it again.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgelm.bundle import GraphContract
from edgelm.bundle.roles import HIDDEN, gives_hidden
from edgelm.runtime.engines.adapters import LoadedAdapter
from edgelm.runtime.engines.graph_check import (
    check_capacity,
    hidden_size,
    output,
    vocab_size,
)
from edgelm.runtime.engines.growth import first_rows, rows_for
from edgelm.runtime.engines.onnxruntime.batched_steps import BatchedSteps
from edgelm.runtime.engines.onnxruntime.bindings import (
    Bindings,
    bind,
    cache_arrays,
    input_arrays,
    run_bound,
)
from edgelm.runtime.engines.onnxruntime.cache_pool import CacheArrays, CachePool
from edgelm.runtime.engines.onnxruntime.host.head_graph import head_graph
from edgelm.runtime.engines.onnxruntime.host.hidden_rows import HiddenRows
from edgelm.runtime.engines.onnxruntime.host.host_neighbors import HostNeighbors
from edgelm.runtime.engines.onnxruntime.host.host_texts import HostTexts, runs_texts
from edgelm.runtime.engines.onnxruntime.host.load_graph import load_graph, onnxruntime
from edgelm.runtime.engines.onnxruntime.interruptible import run_interruptible
from edgelm.runtime.engines.onnxruntime.place_pool import CacheMemory
from edgelm.runtime.engines.onnxruntime.pooled_windows import PooledWindows
from edgelm.runtime.engines.recurrent_state import HostState, RecurrentState
from edgelm.runtime.engines.session import (
    BatchedRuns,
    BatchPlace,
    CacheRows,
    Cancelled,
    Logits,
    TextRuns,
    Tokens,
    never,
)
from edgelm.runtime.engines.step_inputs import StepInputs, step_inputs, update_step, update_steps
from edgelm.runtime.engines.window_state import JointState
from edgelm.runtime.process_memory.heap import give_back

# Tokens from which a run may take seconds on a small device; below, a thread is not worth starting.
_LONG_RUN = 16
# Tokens up to which a run with the logits of all of them is bound once: see runtime/speculation.
_MAX_BOUND = 16


class OrtEngine:
    """A bundle's graph on ONNX Runtime's CPU provider.

    Args:
        folder: the bundle.
        graph: its graph, as the manifest has it.
        capacity: tokens that the cache may grow to hold; at most the bundle's context.
        prefill_chunk: tokens that one run takes.
        threads: threads for matrix products; None means the physical cores.
        sibling_of: another engine of this bundle, whose loaded graph it uses; None: load it.
        loaded: sessions of the graph's parts, where they are loaded already.

    Raises:
        MissingPackage: onnxruntime is not installed, or too old for the graph.
        BadBundle: a graph that does not load, or that does not match the manifest.
        BadInput: a capacity other than the graph's own.
        DoesNotFit: there is no memory for the cache.
    """

    def __init__(
        self,
        folder: Path,
        graph: GraphContract,
        *,
        capacity: int,
        prefill_chunk: int,
        threads: int | None = None,
        sibling_of: "OrtEngine | None" = None,
        loaded: Sequence[Any] = (),
    ) -> None:
        check_capacity(graph.cache, capacity)
        self.capacity = capacity
        self.chunk = prefill_chunk
        self.vocab_size = vocab_size(graph)
        self._folder, self._graph = folder, graph
        # Rows that attention reads; also those of the cache, unless the graph fixes these.
        self._rows = first_rows(graph, capacity)
        self._pool: CachePool = (
            sibling_of._pool
            if sibling_of is not None and graph.takes_batches
            else CachePool(graph.cache, graph.cache.capacity or self._rows)
        )
        self._sessions: list[Any] = (
            sibling_of._sessions
            if sibling_of is not None
            else [*loaded] or load_graph(folder, graph, threads)
        )
        self._place = self._pool.join()
        self._memory, self._cache = self._pool.memory, self._pool.view(self._place)
        self.batch: BatchPlace | None = None
        if graph.takes_batches:
            if sibling_of is None or sibling_of.batch is None:
                neighbors = HostNeighbors(self._sessions, graph, self._pool, capacity=capacity)
                runs: BatchedRuns = BatchedSteps(neighbors, self._pool, capacity=capacity)
            else:
                runs = sibling_of.batch.runs
            self.batch = BatchPlace(runs, self._place)
        self.texts: TextRuns | None = None
        if runs_texts(graph):
            self.texts = (
                HostTexts(self._sessions, graph, self._pool)
                if sibling_of is None
                else sibling_of.texts
            )
        self._adapter: LoadedAdapter | None = None
        self._state = _host_state(graph)
        self.recurrent = _state_of(graph, self._pool, self._place, self._state)
        self.is_head = HIDDEN in graph.inputs
        gives = gives_hidden(graph) and not self.is_head
        # Of the last tokens, for a draft head; None of a graph that is not of a model with one.
        self.hidden = HiddenRows(hidden_size(graph)) if gives else None
        # Logits of the bound steps, which share them.
        self._rows_out: Logits = np.zeros((1, self.vocab_size), dtype=np.float32)
        # Decoding binds these once per size: a step changes five numbers in place.
        self._steps: dict[int, _Step] = {1: self._bind_step(1)}

    @property
    def cache_bytes(self) -> int:
        """Memory that the key-value cache takes."""
        rows: int = sum(array.nbytes for pair in self._cache for array in pair)
        hidden = self.hidden.nbytes if self.hidden else 0
        return rows + hidden + (self._state.nbytes if self._state else 0)

    def run(
        self, tokens: Tokens, past: int, *, logits: int, cancelled: Callable[[], bool]
    ) -> Logits:
        """Append tokens [T] behind `past` others; return logits [logits, vocab_size]."""
        with self._pool.lock:
            return self._run(tokens, past, logits, cancelled)[0]

    def run_head(self, tokens: Tokens, past: int, hidden: Logits) -> tuple[Logits, Logits]:
        """Append tokens [T] of a draft head behind `past` others.

        `hidden` [T, hidden_size] is what its model has in front of each. Returns the logits
        [1, vocab_size] and the hidden state [1, hidden_size] behind the last one, valid until the
        next run.
        """
        with self._pool.lock:
            logits, states = self._run(tokens, past, 1, never, hidden)
            assert states is not None
            return logits, states[0]

    def _run(
        self,
        tokens: Tokens,
        past: int,
        logits: int,
        cancelled: Callable[[], bool],
        given: Logits | None = None,
    ) -> tuple[Logits, Logits | None]:
        """Logits [logits, vocab_size], and hidden states [1, rows, hidden_size] of the graph."""
        self._reserve(past + len(tokens))
        if len(tokens) == 1 or logits == len(tokens) <= _MAX_BOUND:
            step = self._run_step(tokens, past, given)
            return step.logits[:logits], step.hidden
        inputs = step_inputs(tokens, past, logits)
        if given is not None:
            inputs[HIDDEN] = np.ascontiguousarray(given[None])
        rows: Logits = np.empty((1, max(1, logits), self.vocab_size), dtype=np.float32)
        new, hidden = self._new_rows(len(tokens)), self._new_hidden(len(tokens), rows.shape[1])
        bindings = self._bind(inputs, rows, new, hidden)
        if len(tokens) < _LONG_RUN:
            run_bound(self._sessions, bindings)
        else:
            self._execute_interruptible(bindings, cancelled)
        self._append(new, hidden, past, len(tokens))
        first: Logits = rows[0, :logits]
        return first, hidden

    def use_adapter(self, adapter: LoadedAdapter | None) -> None:
        """Bind an adapter to the next runs, or none. The cache's rows are then of another model."""
        with self._pool.lock:
            self._follow_memory()
            before, self._adapter = self._adapter, adapter
            try:
                self._steps = {1: self._bind_step(1)}
            except BaseException:
                self._adapter = before
                raise

    def sibling(self) -> "OrtEngine":
        """Another cache over the same weights."""
        return OrtEngine(
            self._folder,
            self._graph,
            capacity=self.capacity,
            prefill_chunk=self.chunk,
            sibling_of=self,
        )

    def draft_head(
        self, folder: Path, graph: GraphContract, *, capacity: int, threads: int | None = None
    ) -> "OrtEngine":
        """The draft head in a folder, over this engine's embedding and output matrix."""
        [own], sessions = load_graph(folder, graph, threads), self._sessions
        return OrtEngine(
            folder,
            head_graph(self._graph, graph),
            capacity=capacity,
            prefill_chunk=self.chunk,
            loaded=[sessions[0], own, sessions[-1]],
        )

    @property
    def loaded(self) -> tuple[list[Any], GraphContract]:
        """The sessions of its graph's parts, and the graph."""
        return self._sessions, self._graph

    def read_rows(self, count: int) -> CacheRows:
        """The first `count` rows of the layers that hold all tokens: views of them."""
        with self._pool.lock:
            self._follow_memory()
            return [array[:, :, :count] for array in self._growing()]

    def write_rows(self, rows: CacheRows) -> None:
        """Write rows that `read_rows` gave over the first ones of the cache."""
        with self._pool.lock:
            if self.hidden:
                self.hidden.clear()
            self._reserve(max((given.shape[2] for given in rows), default=0))
            for array, given in zip(self._growing(), rows, strict=True):
                array[:, :, : given.shape[2]] = given

    def _growing(self) -> list[Any]:
        """Keys and values, alternating, of the layers that hold all tokens."""
        pairs = zip(self._graph.cache.layers, self._cache, strict=True)
        return [array for layer, pair in pairs if layer.rows is None for array in pair]

    def close(self) -> None:
        """Release the graph and the cache."""
        self._sessions, self._cache, self.batch, self.texts = [], [], None, None
        self._steps.clear()
        self._pool.leave(self._place)
        self._memory = CacheMemory([], 0, ())

    def _reserve(self, tokens: int) -> None:
        """Make room for `tokens`; what is in the cache stays there.

        Where there is no memory for it, the session stays as it is.
        """
        self._follow_memory()
        if tokens > self._rows:
            rows = rows_for(tokens, self.capacity)
            if self._graph.cache.capacity is None:
                self._pool.grow(rows)
                self._follow_memory()
            self._rows = rows
            self._steps = {1: self._bind_step(1)}
            give_back()  # the smaller cache
        self._pool.wrote(self._place, tokens)

    def _follow_memory(self) -> None:
        """Bind the cache where it is now: a sibling that grew has moved it."""
        memory = self._pool.memory
        if memory is not self._memory:
            self._cache = self._pool.view(self._place)
            if self._graph.cache.capacity is None:
                self._rows = memory.rows
            self._steps = {1: self._bind_step(1)}
            self._memory = memory

    def _run_step(self, tokens: Tokens, past: int, given: Logits | None) -> "_Step":
        """Run one token, or a few with the logits of each, by a binding that was made before."""
        count = len(tokens)
        step = self._steps.get(count)
        if step is None:
            if count > len(self._rows_out):
                self._rows_out = np.zeros((count, self.vocab_size), dtype=np.float32)
                self._steps.clear()
            step = self._steps[count] = self._bind_step(count)
        if count == 1:
            update_step(step.inputs, int(tokens[0]), past)
        else:
            update_steps(step.inputs, tokens, past)
        if given is not None:
            step.inputs[HIDDEN][0] = given
        run_bound(self._sessions, step.bindings)
        self._append(step.new, step.hidden, past, count)
        return step

    def _bind_step(self, count: int) -> "_Step":
        inputs = step_inputs(np.zeros(count, dtype=np.int64), 0, count)
        if self.is_head:
            inputs[HIDDEN] = np.zeros((1, count, hidden_size(self._graph)), dtype=np.float32)
        logits, new = self._rows_out[:count], self._new_rows(count)
        hidden = self._new_hidden(count, count)
        return _Step(inputs, logits, new, hidden, self._bind(inputs, logits[None], new, hidden))

    def _execute_interruptible(self, bindings: Bindings, cancelled: Callable[[], bool]) -> None:
        options = onnxruntime.RunOptions()

        def stop() -> None:
            options.terminate = True

        run = partial(run_bound, self._sessions, bindings, options)
        if run_interruptible(run, stop, cancelled):
            raise Cancelled

    def _bind(
        self, inputs: StepInputs, logits: Logits, new: CacheArrays, hidden: Logits | None
    ) -> Bindings:
        """Bind the addresses of inputs, logits [1, P, vocab_size], the cache and its new rows."""
        graph = self._graph
        arrays = input_arrays(graph, inputs)
        if "cache_positions" in graph.inputs:
            arrays[graph.inputs["cache_positions"].name] = np.arange(self._rows, dtype=np.int64)
        arrays[output(graph).name] = logits
        if hidden is not None:
            arrays[graph.outputs[HIDDEN].name] = hidden
        arrays |= cache_arrays(graph, self._cache, new)
        if self._state:
            pairs = zip(self._state.past, self._state.present, strict=True)
            for state, (before, after) in zip(graph.cache.states, pairs, strict=True):
                arrays[state.past], arrays[state.present] = before, after
        if self._adapter is not None:
            arrays |= self._adapter.arrays
        sizes = {"B": 1, "T": inputs["tokens"].size, "P": logits.shape[1]}
        return bind(self._sessions, graph, arrays, sizes)

    def _new_rows(self, count: int) -> CacheArrays:
        """Where the graph writes the rows of `count` tokens: the cache, or memory of their own."""
        if self._graph.cache.update == "in_place":
            return self._cache
        return self._pool.allocate(1, count)

    def _new_hidden(self, count: int, rows: int) -> Logits | None:
        """Where the graph writes hidden states: of `count` tokens, or a head's, of `rows`."""
        if not gives_hidden(self._graph):
            return None
        size = rows if self.is_head else count
        return np.empty((1, size, hidden_size(self._graph)), dtype=np.float32)

    def _append(self, new: CacheArrays, hidden: Logits | None, past: int, count: int) -> None:
        """Take over what a run wrote beside the memory that is bound to it."""
        if self._state:
            self._state.advance()
        if self.hidden and hidden is not None:
            self.hidden.put(past, hidden[0])
        if new is self._cache:
            return
        rows = slice(past, past + count)
        for old, present in zip(self._cache, new, strict=True):
            old[0][:, :, rows] = present[0]
            old[1][:, :, rows] = present[1]


def _host_state(graph: GraphContract) -> HostState | None:
    """The state of layers without attention.

    LinearAttention, the convolutions and, in older bundles, CausalConvWithState copy what they
    read of it before they write; operators of the other dialects may read it after.
    """
    if not graph.cache.states:
        return None
    return HostState(graph.cache.states, in_place=graph.dialect == "ort")


def _state_of(
    graph: GraphContract, pool: CachePool, place: int, host: HostState | None
) -> RecurrentState | None:
    """What cannot be cut back to fewer tokens: cut caches, and states of layers without them."""
    parts: list[RecurrentState] = []
    if graph.cache.cuts_windows:  # first: it checks what is restored
        parts.append(PooledWindows(pool, place, graph.cache.layers))
    if host is not None:
        parts.append(host)
    return JointState(parts) if len(parts) > 1 else next(iter(parts), None)


class _Step(NamedTuple):
    """A run that is repeated with other tokens: its bindings, and the memory that they name."""

    inputs: StepInputs
    logits: Logits
    new: CacheArrays
    hidden: Logits | None
    bindings: Bindings
