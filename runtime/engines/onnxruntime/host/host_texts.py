"""Runs over several whole texts on ONNX Runtime's CPU provider."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgelm.bundle import GraphContract
from edgelm.quantize.precision import EIGHT_BIT_KV
from edgelm.runtime.engines.graph_check import output, vocab_size
from edgelm.runtime.engines.onnxruntime.bindings import (
    bind,
    cache_arrays,
    input_arrays,
    run_bound,
)
from edgelm.runtime.engines.onnxruntime.cache_pool import CACHE_DTYPES, CachePool
from edgelm.runtime.engines.session import Logits, Tokens
from edgelm.runtime.engines.step_inputs import text_inputs


class HostTexts:
    """See TextRuns. All layers share memory for keys and values: none reads another's.

    Args:
        sessions: the graph's parts, loaded.
        graph: the graph, for which `runs_texts` holds.
        pool: the caches of the sequences, whose lock it takes.
    """

    def __init__(self, sessions: list[Any], graph: GraphContract, pool: CachePool) -> None:
        self._sessions, self._graph, self._pool = sessions, graph, pool
        self._width = vocab_size(graph)
        self._scratch: dict[tuple[int, str], npt.NDArray[Any]] = {}

    def run(self, texts: Sequence[Tokens], positions: Sequence[int]) -> Logits:
        """Run texts from their first tokens on, in one run."""
        graph = self._graph
        inputs = text_inputs(texts, positions)
        count, longest = inputs["tokens"].shape
        rows: Logits = np.empty((count, len(positions), self._width), dtype=np.float32)
        with self._pool.lock:
            heads = [graph.cache.heads(layer) for layer in graph.cache.layers]
            shapes = [(count, number, longest, dim) for number, dim in heads]
            cache = [(self._memory(one, "key"), self._memory(one, "value")) for one in shapes]
            arrays = input_arrays(graph, inputs) | cache_arrays(graph, cache, cache)
            arrays[output(graph).name] = rows
            run_bound(self._sessions, bind(self._sessions, graph, arrays, {}))
        return rows

    def _memory(
        self, shape: tuple[int, int, int, int], kind: Literal["key", "value"]
    ) -> npt.NDArray[Any]:
        """Memory for keys or values of this shape; the largest that was needed is kept."""
        size, key = math.prod(shape), (shape[1] * shape[3], kind)
        if key not in self._scratch or self._scratch[key].size < size:
            self._scratch[key] = np.zeros(size, dtype=CACHE_DTYPES[self._graph.cache.dtype])
        return self._scratch[key][:size].reshape(shape)


def runs_texts(graph: GraphContract) -> bool:
    """Whether a run may take several texts of an embedding model.

    In fp32 activations a run over an 8-bit cache takes one, if it is longer than a few tokens.
    """
    embeds = "hidden" in graph.outputs and graph.dialect == "ort"
    return embeds and graph.takes_batches and graph.cache.dtype not in EIGHT_BIT_KV
