"""Formats that a compiler of grammars can end badly with, and what each takes.

python -m tests.runtime.text.grammar.bombs    # with and without a trial in a process of its own
"""

import json
import os
import resource
import sys
from typing import Any

import numpy as np
import pytest

from edgelm.errors import BadInput
from edgelm.runtime.text.grammar import compiler
from edgelm.runtime.text.grammar.response_format import ResponseFormat
from tests.checkpoints.tiny_chat import VOCAB, tiny_tokenizer
from tests.fuzz.limits import peak_bytes, reset_peak

# Overflows the stack.
CHAIN: Any = {
    "$ref": "#/$defs/a0",
    "$defs": {f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(3000)} | {"a3000": {}},
}
# Takes seconds, and hundreds of megabytes.
MULTIPLES: Any = {"allOf": [{"type": "integer", "multipleOf": prime} for prime in (997, 991)]}
_STRING = {"type": "string"}
_SCHEMAS: dict[str, Any] = {
    "a chain of 3,000 references": CHAIN,
    "multiples of 997 and of 991": MULTIPLES,
    "10,000 optional properties": {"properties": {f"p{n}": _STRING for n in range(10_000)}},
    "30 patterns that overlap": {
        "type": "string",
        "allOf": [{"pattern": f".*{n}.*"} for n in range(30)],
    },
    "1,000 patterns of properties": {"patternProperties": {f"^a{n}b$": {} for n in range(1000)}},
}
FORMATS = {
    **{name: ResponseFormat("json_schema", json.dumps(one)) for name, one in _SCHEMAS.items()},
    "(a{1000}){1000}": ResponseFormat("regex", "(a{1000}){1000}"),
    r"\w 50,000 times": ResponseFormat("regex", r"\w" * 50_000),
}
_SECONDS = 20


def main() -> None:
    """Print seconds of computing, memory and outcome of every format."""
    for name, one in FORMATS.items():
        for guarded in (False, True):
            child = os.fork()
            if child == 0:
                _measure(name, one, guarded=guarded)
            status = os.waitpid(child, 0)[1]
            if os.WIFSIGNALED(status):
                print(f"{name}, {guarded=}: ended by signal {os.WTERMSIG(status)}", flush=True)


def _measure(name: str, one: ResponseFormat, *, guarded: bool) -> None:
    grammars = compiler.GrammarCompiler(tiny_tokenizer().to_str, VOCAB, {3})
    grammars.check(ResponseFormat("regex", "a"))
    if not guarded:
        pytest.MonkeyPatch().setattr(compiler, "why_not", lambda *_: None)
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    before, began = reset_peak(), sum(os.times()[:4])
    outcome = "accepted"
    try:
        mask = grammars.start(one)
        for _ in range(5):
            mask.advance(int(np.argmax(mask([], np.zeros(VOCAB, dtype=np.float32)))))
    except BadInput as error:
        outcome = str(error)[:100]
    seconds, growth = sum(os.times()[:4]) - began, (peak_bytes() - before) / 1e6
    print(f"{name}, {guarded=}: {seconds:.1f} s, {growth:.0f} MB, {outcome}", flush=True)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
