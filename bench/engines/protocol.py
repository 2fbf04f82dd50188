"""The worker side of a measurement: JSON lines in, JSON lines out, one engine, one process.

All timing happens here, the same for every engine: from the call to when the logits of the last
token can be read. Sampling, tokenizing and printing are left out, as in llama-bench; the tokens
are synthetic, from a fixed seed.
"""

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


class Engine(Protocol):
    """What a worker needs of an engine."""

    def load(self, options: dict[str, Any]) -> dict[str, Any]:
        """Make the model ready and describe it: vocab_size, kv, context, options and so on.

        `device` is `gpu` where that computes.

        `load_ms` is the time until the model could run; tokenizer and hashing are reported apart.
        """

    def reset(self) -> None:
        """Empty the cache."""

    def prefill(self, tokens: Tokens) -> None:
        """Append tokens; return when the last one's logits can be read."""

    def step(self, token: int) -> None:
        """Append one token; return when its logits can be read."""

    def logits(self, tokens: Tokens) -> Logits:
        """Logits [T, vocab] of a whole sequence, from an empty cache."""


def serve(engine: Engine) -> None:
    """Answer requests until standard input ends."""
    # Libraries print to standard output; the protocol keeps it and they get standard error.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            reply = _answer(engine, json.loads(line))
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


def _answer(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    reply: dict[str, Any] = _VERBS[request.pop("verb")](engine, **request)
    return reply


def _load(engine: Engine, options: dict[str, Any]) -> dict[str, Any]:
    before = _status("VmRSS")
    return {**engine.load(options), "rss_before": before, "rss_after": _status("VmRSS")}


def _prefill(engine: Engine, tokens: int, depth: int, vocab_size: int) -> dict[str, Any]:
    _fill(engine, depth, vocab_size)
    prompt = synthetic(tokens, vocab_size, seed=1)
    start = time.perf_counter_ns()
    engine.prefill(prompt)
    return {"ms": (time.perf_counter_ns() - start) / 1e6}


def _decode(engine: Engine, tokens: int, depth: int, vocab_size: int) -> dict[str, Any]:
    # An empty cache has no last token to continue from: depth 0 starts after one.
    prefill_ms = _fill(engine, max(depth, 1), vocab_size)
    steps = []
    for token in synthetic(tokens, vocab_size, seed=2).tolist():
        start = time.perf_counter_ns()
        engine.step(token)
        steps.append((time.perf_counter_ns() - start) / 1e6)
    return {"steps_ms": steps, "ttft_ms": prefill_ms}


def _fill(engine: Engine, depth: int, vocab_size: int) -> float:
    engine.reset()
    if not depth:
        return 0.0
    start = time.perf_counter_ns()
    engine.prefill(synthetic(depth, vocab_size, seed=0))
    return (time.perf_counter_ns() - start) / 1e6


def _logits(engine: Engine, tokens: list[int], path: str) -> dict[str, Any]:
    rows = engine.logits(np.array(tokens, dtype=np.int64))
    np.save(path, rows.astype(np.float32, copy=False))
    return {"rows": len(rows)}


def _memory(engine: Engine) -> dict[str, Any]:
    memory = {"peak_rss_bytes": peak_rss_bytes(), "rss_bytes": _status("VmRSS")}
    gpu = _gpu_bytes()
    return memory if gpu is None else {**memory, "gpu_bytes": gpu}


def synthetic(count: int, vocab_size: int, *, seed: int) -> Tokens:
    """Random tokens, the same for every engine; the first few ids are often special."""
    return np.random.default_rng(seed).integers(min(100, vocab_size // 2), vocab_size, count)


def peak_rss_bytes() -> int:
    """The most memory that this process has held."""
    return _status("VmHWM")


def _status(field: str) -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _gpu_bytes() -> int | None:
    """GPU memory that this process holds, where NVML reports it.

    In a container NVML may know the process by another number; then this is None.
    """
    try:
        import pynvml  # type: ignore[import-untyped]

        pynvml.nvmlInit()
        held = [
            process.usedGpuMemory
            for index in range(pynvml.nvmlDeviceGetCount())
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(
                pynvml.nvmlDeviceGetHandleByIndex(index)
            )
            if process.pid == os.getpid()
        ]
    except Exception:  # no package, no driver, or a board whose memory is the machine's
        return None
    return sum(held) if held and None not in held else None


_VERBS: dict[str, Any] = {
    "load": _load,
    "prefill": _prefill,
    "decode": _decode,
    "logits": _logits,
    "memory": _memory,
}
