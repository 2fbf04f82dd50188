"""An assistant on ONNX Runtime's CPU provider: runs over the keys and values of its model.

All runs of a draft have the same position and read the same rows, those of the tokens that the
model has run. They are bound once per draft: between two, the model's cache may grow and move.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edgelm.bundle import GraphContract
from edgelm.bundle.roles import EMBEDDED, HIDDEN
from edgelm.errors import BadBundle, BadInput
from edgelm.runtime.engines.graph_check import hidden_size, output, vocab_size
from edgelm.runtime.engines.onnxruntime.bindings import bind, input_arrays, run_bound
from edgelm.runtime.engines.onnxruntime.host.load_graph import load_graph
from edgelm.runtime.engines.session import CacheRows, Logits, Tokens
from edgelm.runtime.engines.step_inputs import step_inputs

Arrays = Mapping[str, npt.NDArray[Any]]


class AssistantRuns:
    """The runs of one draft.

    Args:
        sessions: of the model's embedding and of the assistant.
        graph: of both.
        past: tokens that the model has run.
        borrowed: its keys and values, by the names of the assistant's inputs.
    """

    def __init__(
        self, sessions: list[Any], graph: GraphContract, past: int, borrowed: Arrays
    ) -> None:
        self._sessions, width = sessions, hidden_size(graph)
        inputs = step_inputs(np.zeros(1, dtype=np.int64), past, 1)
        # Its own token is not in the cache: the last row is that of the token before.
        inputs["last_position"][0], inputs["total_length"][()] = past - 1, past
        self._hidden = np.zeros((1, 1, width), dtype=np.float32)
        inputs[HIDDEN] = self._hidden
        self._tokens = inputs["tokens"]
        self._logits: Logits = np.empty((1, 1, vocab_size(graph)), dtype=np.float32)
        self._next: Logits = np.empty((1, 1, width), dtype=np.float32)
        arrays = {**input_arrays(graph, inputs), **borrowed}
        arrays[output(graph).name] = self._logits
        arrays[graph.outputs[HIDDEN].name] = self._next
        self._bindings = bind(sessions, graph, arrays, {"T": 1, "P": 1})

    def run(self, token: int, hidden: Logits | None) -> Logits:
        """Logits [vocab_size] of what follows a token, valid until the next run.

        `hidden` [1, hidden_size] is what the model has in front of it; None: what the last run
        gave.
        """
        self._tokens[0, 0] = token
        self._hidden[0] = self._next[0] if hidden is None else hidden
        run_bound(self._sessions, self._bindings)
        row: Logits = self._logits[0, 0]
        return row


class AssistantEngine:
    """An assistant, which has no cache of its own; see Engine.

    Args:
        sessions: of its model's embedding and of its graph.
        graph: of both.
        capacity: tokens that its model's cache may grow to hold.
    """

    chunk = 1
    recurrent = batch = texts = None
    cache_bytes = 0

    def __init__(self, sessions: list[Any], graph: GraphContract, capacity: int) -> None:
        self._sessions, self._graph = sessions, graph
        self.capacity, self.vocab_size = capacity, vocab_size(graph)

    @classmethod
    def load(
        cls,
        folder: Path,
        graph: GraphContract,
        embedding: Any,
        model: GraphContract,
        *,
        capacity: int,
        threads: int | None = None,
    ) -> "AssistantEngine":
        """Load the assistant in a folder.

        Args:
            folder: the assistant's.
            graph: its graph, as its manifest has it.
            embedding: the session of the first part of its model's graph.
            model: its model's graph.
            capacity: tokens that its model's cache may grow to hold.
            threads: as those of its model.

        Raises:
            BadBundle: a graph that does not load, or that reads what the model does not have.
        """
        layers = (one for one in model.cache.layers if one.rows is None)
        held = {name for one in layers for name in (one.past_key, one.past_value)}
        if missing := sorted(_borrowed(graph) - held):
            raise BadBundle(
                f"{folder} reads {missing[0]!r}, which the model's cache does not have; export the "
                "model again with --assistant"
            )
        [own] = load_graph(folder, graph, threads)
        first = model.segments[0]
        inputs = {role: one for role, one in graph.inputs.items() if role != EMBEDDED}
        joined = msgspec.structs.replace(
            graph,
            file=first.file,
            inputs=inputs,
            segments=(first, *graph.parts),
            links=tuple(one for one in model.links if one.name == EMBEDDED),
        )
        return cls([embedding, own], joined, capacity)

    def runs(self, past: int, model: GraphContract, rows: CacheRows) -> AssistantRuns:
        """The runs of a draft behind `past` tokens, of a model and its cache's whole layers."""
        layers = (one for one in model.cache.layers if one.rows is None)
        names = [name for one in layers for name in (one.past_key, one.past_value)]
        wanted = _borrowed(self._graph)
        borrowed = {name: one for name, one in zip(names, rows, strict=True) if name in wanted}
        return AssistantRuns(self._sessions, self._graph, past, borrowed)

    def run(
        self, tokens: Tokens, past: int, *, logits: int, cancelled: Callable[[], bool]
    ) -> Logits:
        """Raise BadInput: it computes nothing without its model."""
        raise BadInput("an assistant runs in the drafts of its model only")

    def sibling(self) -> "AssistantEngine":
        """Another one, for another sequence of the model."""
        return AssistantEngine(self._sessions, self._graph, self.capacity)

    def read_rows(self, count: int) -> CacheRows:
        """None: it has no cache."""
        return []

    def write_rows(self, rows: CacheRows) -> None:
        """Nothing: it has no cache."""

    def close(self) -> None:
        """Release the graph."""
        self._sessions = []


def _borrowed(graph: GraphContract) -> set[str]:
    """The names of the inputs that are a model's keys and values."""
    return {one.name for role, one in graph.inputs.items() if role.startswith("past.")}
