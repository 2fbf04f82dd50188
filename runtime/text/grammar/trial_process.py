"""A program that compiles one grammar, run by `trial`: what it takes, before the model's process.

Reads one line of JSON from standard input: the `grammar` as llguidance has it, its `limits`, the
`special` tokens of the vocabulary by text, and its `size`. Ends with 0, whether or not the grammar
is valid; dies of one that takes too long, too much memory or too deep a stack. Nothing of edgelm is
imported, so that it starts quickly.

    python -I -S trial_process.py FOLDER_OF_LLGUIDANCE SECONDS MEGABYTES
"""

import json
import os
import sys
import threading
from typing import Any

_STACK_BYTES = 2 << 20  # less than a thread of a server has


class _Tokens:
    """A vocabulary of single bytes and the special tokens, which grammars may name."""

    bos_token_id = None

    def __init__(self, special: dict[str, int], size: int) -> None:
        named = {number: text.encode() for text, number in special.items()}
        self.tokens = [named.get(number, b"") for number in range(max(size, *named, 256) + 1)]
        free = (number for number in range(len(self.tokens)) if number not in named)
        for byte, number in zip(range(256), free, strict=False):
            self.tokens[number] = bytes([byte])
        self.special_token_ids = [*named]
        self.eos_token_id = min(named, default=len(self.tokens) - 1)

    def __call__(self, text: bytes) -> list[int]:
        return []


def _run(module: Any, request: dict[str, Any]) -> None:
    """In a thread, whose exceptions would not end the process."""
    try:
        vocabulary, limits = _prepare(module, request)
    except BaseException:
        os._exit(1)  # not the grammar's fault
    try:
        _compile(module, request["grammar"], vocabulary, limits)
    except BaseException:  # no memory, or llguidance gave up; it has no exceptions for bad grammars
        os.abort()


def _prepare(module: Any, request: dict[str, Any]) -> tuple[Any, Any]:
    tokens = _Tokens(request["special"], request["size"])
    vocabulary = module.LLTokenizer(module.TokenizerWrapper(tokens), n_vocab=len(tokens.tokens))
    return vocabulary, module.LLParserLimits(**request["limits"])


def _compile(module: Any, grammar: str, vocabulary: Any, limits: Any) -> None:
    matcher = module.LLMatcher(vocabulary, grammar, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()  # the lexer is built for the first mask


def _limit(seconds: float, megabytes: int) -> None:
    """End this process when it has computed or allocated more."""
    try:
        import resource
        from signal import ITIMER_PROF, setitimer
    except ImportError:  # Windows, where the parent's deadline is the only limit
        return
    setitimer(ITIMER_PROF, seconds)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with open("/proc/self/statm") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # macOS, which does not enforce this limit
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = mapped + (megabytes << 20)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def main() -> None:
    """Compile the grammar on standard input."""
    sys.path.append(sys.argv[1])
    request = json.loads(sys.stdin.buffer.read())
    import llguidance

    _limit(float(sys.argv[2]), int(sys.argv[3]))
    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=_run, args=(llguidance, request))
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
