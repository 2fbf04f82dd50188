"""Which operators of a CPU bundle take longer for several tokens or sequences than for one.

    python -m bench.studies.sequences.operator_times BUNDLE
        [--sequences 1,2,4 | --tokens 1,2,4,8] [--depth 64] [--threads 1]

Milliseconds in all nodes of an operator, from ONNX Runtime's profile. Of each node
the 12th percentile of its runs counts, so that other work on the machine has little influence.
"""

import argparse
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgelm.bundle import read_manifest
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.onnxruntime.host import load_graph
from edgelm.runtime.engines.onnxruntime.ort import OrtEngine
from edgelm.runtime.engines.open import open_session

_ROUNDS, _WARM_UP = 24, 3
Table = dict[str, dict[int, float]]  # milliseconds by operator and size of the run


@contextmanager
def profiled(folder: Path) -> Iterator[None]:
    """Sessions that are opened within write a profile into a folder."""
    module: Any = load_graph.onnxruntime
    options = module.SessionOptions

    def profiling() -> Any:
        made = options()
        made.enable_profiling = True
        made.profile_file_prefix = str(folder / "profile")
        return made

    module.SessionOptions = profiling
    try:
        yield
    finally:
        module.SessionOptions = options


def measure(
    bundle: Path, sizes: list[int], *, depth: int, threads: int | None, sequences: bool
) -> Table:
    """The table for runs of one token of each of several sequences, or of several tokens."""
    manifest = read_manifest(bundle)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        with profiled(Path(name)):
            first = stack.enter_context(
                open_session(bundle, manifest, capacity=manifest.limits.context, threads=threads)
            )
        assert isinstance(first, EngineSession)
        prompt = np.random.default_rng(0).integers(5, first.vocab_size, depth)
        first.advance(prompt)
        sessions = [first]
        for _ in range(max(sizes) - 1 if sequences else 0):
            sessions.append(stack.enter_context(first.sibling()))
            sessions[-1].restore(prompt.tolist(), first.state(depth))
        runs = []
        for number in range(_WARM_UP + _ROUNDS):
            for size in sizes if number % 2 else reversed(sizes):
                step(sessions[:size] if sequences else [first], size, depth)
                runs.append(size)
        assert isinstance(first.engine, OrtEngine)
        [session] = first.engine._sessions
        profile = json.loads(Path(session.end_profiling()).read_text())
    return table(profile, runs)


def step(sessions: list[EngineSession], size: int, depth: int) -> None:
    """A run of `size` tokens, after which all is as before."""
    if len(sessions) > 1:
        EngineSession.advance_each(sessions, list(range(7, 7 + size)))
    else:
        sessions[0].verify(np.arange(7, 7 + size))
    for session in sessions:
        session.keep(depth)


def table(profile: list[dict[str, Any]], runs: list[int]) -> Table:
    """Times of operators from a profile, whose last runs had these sizes."""
    runs_found = [event for event in profile if event["name"] == "model_run"][-len(runs) :]
    nodes = sorted(
        (e for e in profile if e["cat"] == "Node" and e["name"].endswith("_kernel_time")),
        key=_start,
    )
    seconds: dict[tuple[int, str, str, int], list[float]] = defaultdict(list)
    for event, size in list(zip(runs_found, runs, strict=True))[_WARM_UP * len(set(runs)) :]:
        seen: Counter[str] = Counter()
        for node in nodes:
            if event["ts"] <= node["ts"] < event["ts"] + event["dur"]:
                name, kind = node["name"].removesuffix("_kernel_time"), node["args"]["op_name"]
                seen[name] += 1
                seconds[size, _group(kind, name), name, seen[name]].append(node["dur"] / 1e3)
    found: Table = defaultdict(lambda: dict.fromkeys(sorted(set(runs)), 0.0))
    for (size, group, *_), times in seconds.items():
        if group != "If":  # the time of its branch is counted there
            found[group][size] += sorted(times)[len(times) // 8]
            found["all"][size] += sorted(times)[len(times) // 8]
    return dict(found)


def _start(event: dict[str, Any]) -> int:
    return int(event["ts"])


def _group(kind: str, name: str) -> str:
    if name.endswith("lm_head"):
        return "head"
    return f"{kind} {name.split('.', 2)[-1]}" if kind == "MatMulNBits" else kind


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--sequences", type=_numbers, help="sequences of each run")
    kind.add_argument("--tokens", type=_numbers, default=[1, 2, 4, 8], help="tokens of each run")
    parser.add_argument("--depth", type=int, default=64, help="tokens before")
    parser.add_argument("--threads", type=int, help="threads (default: physical cores)")
    given = parser.parse_args()
    sizes = given.sequences or given.tokens
    found = measure(
        given.bundle,
        sizes,
        depth=given.depth,
        threads=given.threads,
        sequences=given.sequences is not None,
    )
    print(f"| ms at depth {given.depth} |", " | ".join(map(str, sizes)), "| last ÷ first |")
    print("|---|" + "---:|" * (len(sizes) + 1))
    for name, times in sorted(found.items(), key=lambda row: -row[1][sizes[-1]]):
        shown = " | ".join(f"{times[size]:.2f}" for size in sizes)
        print(f"| {name} | {shown} | {times[sizes[-1]] / times[sizes[0]]:.1f} |")


if __name__ == "__main__":
    main()
