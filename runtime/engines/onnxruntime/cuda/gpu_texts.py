"""Runs over several whole texts on ONNX Runtime's CUDA provider."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from edgelm.bundle import GraphContract
from edgelm.runtime.engines.graph_check import vocab_size
from edgelm.runtime.engines.onnxruntime.cuda.bound_step import BoundStep
from edgelm.runtime.engines.onnxruntime.cuda.gpu_pool import GpuPool, GpuTensors
from edgelm.runtime.engines.session import Logits, Tokens
from edgelm.runtime.engines.step_inputs import text_inputs


class GpuTexts:
    """See TextRuns. A run's keys and values are in memory of their own, which the next run reuses.

    Args:
        session: of the graph.
        graph: the graph, for which `runs_texts` holds.
        pool: the caches of the sequences, whose lock it takes.
    """

    def __init__(self, session: Any, graph: GraphContract, pool: GpuPool) -> None:
        self._session, self._graph, self._pool = session, graph, pool
        self._width = vocab_size(graph)
        self._scratch: GpuTensors = []
        self._tokens = 0

    def run(self, texts: Sequence[Tokens], positions: Sequence[int]) -> Logits:
        """Run texts from their first tokens on, in one run."""
        inputs = text_inputs(texts, positions)
        count, longest = inputs["tokens"].shape
        with self._pool.lock:
            cache = self._cache(count, longest)
            shape = (count, len(positions), self._width)
            step = BoundStep(self._session, self._graph, inputs, cache, cache, logits=shape)
            return step.run().copy()

    def _cache(self, count: int, rows: int) -> GpuTensors:
        """Memory for the keys and values of a run, by layer."""
        if self._tokens < count * rows:
            self._scratch = []  # given back before more is taken
            self._scratch = self._pool.reserve(1, count * rows, "the keys and values of a run")
            self._tokens = count * rows

        def shaped(layer: int, which: int) -> Any:
            whole = self._scratch[layer][which]
            return replace(whole, shape=(count, whole.shape[1], rows, whole.shape[3]))

        return [(shaped(layer, 0), shaped(layer, 1)) for layer in range(len(self._scratch))]
