"""edgelm itself, through the session that applications use."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from edgelm.bench.engines.protocol import Logits, Tokens, serve
from edgelm.bundle import read_manifest, verify
from edgelm.bundle.files import TOKENIZER, file_states
from edgelm.errors import BadBundle
from edgelm.runtime.engines.open import engine_version, open_session
from edgelm.runtime.text.tokenizer import Tokenizer


class EdgeLM:
    """A bundle."""

    def load(self, options: dict[str, Any]) -> dict[str, Any]:
        folder = Path(options["path"])
        # The order that `edgelm.load` has: nothing is opened that does not match its hash.
        started = time.perf_counter()
        manifest = read_manifest(folder)
        before = file_states(folder, manifest)
        verify(folder, manifest)
        hashed = time.perf_counter()
        on_cpu = manifest.engine.name == "onnxruntime"
        threads = options["threads"] if on_cpu else None
        capacity = manifest.graph.cache.capacity or options["context"]
        session = open_session(folder, manifest, capacity=capacity, threads=threads)
        loaded = time.perf_counter()
        self.session = session
        Tokenizer(folder / TOKENIZER)
        tokenized = time.perf_counter()
        if file_states(folder, manifest) != before:
            raise BadBundle(f"{folder} was replaced while it was loaded; measure it again")
        return {
            "load_ms": 1e3 * (loaded - hashed),
            "hash_ms": 1e3 * (hashed - started),
            "tokenizer_ms": 1e3 * (tokenized - loaded),
            "vocab_size": session.vocab_size,
            "context": session.capacity,
            "kv": manifest.kv,
            "kv_bytes": session.cache_bytes,
            "weight_bytes": manifest.weight_bytes,
            "version": engine_version(manifest),
            "device": "cpu" if on_cpu else "gpu",
            "options": f"{manifest.engine.name}, "
            + (f"threads {threads}, " if on_cpu else "")
            + f"prefill chunks of {session.chunk}",
        }

    def reset(self) -> None:
        self.session.rewind(0)

    def prefill(self, tokens: Tokens) -> None:
        self.session.advance(tokens)

    def step(self, token: int) -> None:
        self.session.advance(np.array([token]))

    def logits(self, tokens: Tokens) -> Logits:
        self.session.rewind(0)
        return self.session.advance(tokens, logits=len(tokens))


if __name__ == "__main__":
    serve(EdgeLM())
