"""llama.cpp through llama-cpp-python's low-level calls: no Python work per token but one call.

Flash attention on, f16 cache, mapped weights, batches as llama-bench has them.
"""

import ctypes
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from edgelm.bench.engines.protocol import Logits, Tokens, serve

_FLASH_ATTENTION_ON = 1
_BATCH = 2048
_UBATCH = 512


class LlamaCpp:
    """A GGUF file."""

    def load(self, options: dict[str, Any]) -> dict[str, Any]:
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        path = Path(options["path"])
        started = time.perf_counter()
        model = llama_cpp.llama_load_model_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        if not model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = options["context"]
        settings.n_batch = _BATCH
        settings.n_ubatch = _UBATCH
        settings.n_threads = settings.n_threads_batch = options["threads"]
        settings.flash_attn_type = _FLASH_ATTENTION_ON
        self.context = llama_cpp.llama_init_from_model(model, settings)
        if not self.context:
            raise RuntimeError("llama.cpp cannot create a context of this size")
        loaded = time.perf_counter()
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        layers = llama_cpp.llama_model_n_layer(model)
        width = llama_cpp.llama_model_n_embd(model) // llama_cpp.llama_model_n_head(model)
        heads = llama_cpp.llama_model_n_head_kv(model)
        context = llama_cpp.llama_n_ctx(self.context)
        return {
            "load_ms": 1e3 * (loaded - started),
            "vocab_size": self.vocab_size,
            "context": context,
            "kv": "f16",
            "kv_bytes": 2 * 2 * layers * heads * width * context,
            "weight_bytes": path.stat().st_size,
            "version": llama_cpp.__version__,
            "options": f"threads {options['threads']}, flash attention, batch {_BATCH}, ubatch "
            f"{_UBATCH}, mmap; load includes its vocabulary",
        }

    def reset(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def prefill(self, tokens: Tokens) -> None:
        for at in range(0, len(tokens), _BATCH):
            self._decode(tokens[at : at + _BATCH].tolist())

    def step(self, token: int) -> None:
        self._decode([token])

    def logits(self, tokens: Tokens) -> Logits:
        self.reset()
        rows = []
        for at in range(0, len(tokens), _UBATCH):
            part = tokens[at : at + _UBATCH].tolist()
            batch = llama_cpp.llama_batch_init(len(part), 0, 1)
            batch.n_tokens = len(part)
            for index, token in enumerate(part):
                batch.token[index] = token
                batch.pos[index] = at + index
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = 0
                batch.logits[index] = 1
            self._check(llama_cpp.llama_decode(self.context, batch))
            pointer = llama_cpp.llama_get_logits(self.context)
            shape = (len(part), self.vocab_size)
            rows.append(np.ctypeslib.as_array(pointer, shape=shape).copy())
            llama_cpp.llama_batch_free(batch)
        return np.concatenate(rows)

    def _decode(self, tokens: list[int]) -> None:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        batch = llama_cpp.llama_batch_get_one(array, len(tokens))
        self._check(llama_cpp.llama_decode(self.context, batch))
        llama_cpp.llama_synchronize(self.context)

    @staticmethod
    def _check(status: int) -> None:
        if status:
            raise RuntimeError(f"llama_decode returned {status}")


if __name__ == "__main__":
    serve(LlamaCpp())
