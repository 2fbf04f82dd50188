"""A worker whose engine does no work: it notes what is asked of it and can fail on purpose.

What it does is in the name of its model file: `good`, or one of the failures below. Every call is
appended to the file that FAKE_LOG names, so that the order over several processes can be seen.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgelm.bench.engines.protocol import Logits, Tokens, serve

VOCAB = 320


class FakeEngine:
    """Fails where the name of its model says."""

    def __init__(self) -> None:
        self.name = ""
        self.length = 0

    def load(self, options: dict[str, Any]) -> dict[str, Any]:
        self.name = Path(options["path"]).name
        self._note("load")
        if self.name == "fails-to-load":
            raise ValueError("no such model")
        if self.name == "chatty":
            print("progress on standard output")
            os.write(1, b"and past Python\n")
        return {
            "load_ms": 2.0,
            "vocab_size": VOCAB,
            "context": options["context"],
            "kv": "fp32",
            "kv_bytes": 1000 * options["context"],
            "weight_bytes": 50_000,
            "version": "1.0",
            "options": f"threads {options['threads']}",
        }

    def reset(self) -> None:
        self.length = 0

    def prefill(self, tokens: Tokens) -> None:
        self._note(f"prefill {len(tokens)} after {self.length}")
        if self.name == "hangs":
            time.sleep(600)
        if self.name == "dies-in-prefill":
            print("out of memory", file=sys.stderr, flush=True)
            os._exit(9)
        self.length += len(tokens)

    def step(self, token: int) -> None:
        if self.name == "fails-to-decode":
            raise RuntimeError("cannot decode")
        assert 0 <= token < VOCAB
        self.length += 1
        self._note(f"step {self.length}")

    def logits(self, tokens: Tokens) -> Logits:
        self._note("logits")
        if self.name == "fails-in-logits":
            raise RuntimeError("one row only")
        return np.zeros((len(tokens), VOCAB), dtype=np.float32)

    def _note(self, what: str) -> None:
        if path := os.environ.get("FAKE_LOG"):
            with Path(path).open("a") as log:
                log.write(f"{self.name} {what}\n")


if __name__ == "__main__":
    serve(FakeEngine())
