"""What drafting gains where a JSON schema forces a part of the answer.

    python -m bench.studies.speculation.schema_answers BUNDLE [--rounds 3] [--threads 2]

The extractions of `edge-bench --speculation`, answered by the model itself and greedily, under a
schema with the keys of the reference answer; with and without speculation in turn. The last column
is the processor time that everything else on the machine used meanwhile, in cores (Linux).
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgelm.bench.speculation.extraction import EXTRACTION
from edgelm.bench.speculation.gain import gain_of, interval_of
from edgelm.bench.speculation.task import Task
from edgelm.runtime import LanguageModel, Reply, load
from edgelm.speculation import SpeculationMode

_MAX_TOKENS, _MAX_LENGTH, _MAX_ITEMS = 160, 80, 12
_MODES: tuple[SpeculationMode, ...] = ("off", "auto")


def schema_of(value: Any) -> dict[str, Any]:
    """A schema that a JSON value matches: its keys, all required, and the types of its values.

    A list has at least one item, and all are as its first one.
    """
    if isinstance(value, dict):
        properties = {key: schema_of(item) for key, item in value.items()}
        required = {"required": list(value), "additionalProperties": False}
        return {"type": "object", "properties": properties, **required}
    if isinstance(value, list):
        limits = {"minItems": 1, "maxItems": _MAX_ITEMS}
        return {"type": "array", "items": schema_of(value[0]), **limits}
    if isinstance(value, str):
        return {"type": "string", "maxLength": _MAX_LENGTH}
    names = {bool: "boolean", int: "integer", float: "number", type(None): "null"}
    return {"type": names[type(value)]}


def answer_pairs(lm: LanguageModel, task: Task, rounds: int) -> list[tuple[Reply, Reply]]:
    """Answers without and with speculation, from an empty cache, after a first pair for warm-up."""
    schema = schema_of(json.loads(task.reference))
    form = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}}
    options: Any = {"response_format": form, "temperature": 0, "max_tokens": _MAX_TOKENS}
    prompt: Any = task.prompt
    if lm.has_chat_template:
        prompt = [{"role": "user", "content": task.prompt}]
    pairs = []
    for turn in range(rounds + 1):
        replies = {}
        for mode in _MODES[:: 1 if turn % 2 else -1]:
            lm.session.rewind(0)
            replies[mode] = lm.generate(prompt, speculation=mode, **options)
        pairs.append((replies["off"], replies["auto"]))
    return pairs[1:]


def report(pairs: Sequence[Sequence[tuple[Reply, Reply]]]) -> str:
    """The gain over all tasks, and that of each."""
    rates = [[[_rate(reply) for reply in pair] for pair in task] for task in pairs]
    speeds = np.array(rates)  # [tasks, rounds, without and with]
    ratios = speeds[..., 1] / speeds[..., 0]
    low, high = interval_of(ratios)
    with_it = [on.timings for task in pairs for _, on in task]
    decoded, drafted, accepted = (
        sum(getattr(one, name) for one in with_it) for name in ("decoded", "drafted", "accepted")
    )
    different = sum(off.tokens != on.tokens for task in pairs for off, on in task)
    off, on = (statistics.median(speeds[..., n].ravel()) for n in (0, 1))
    gains = ", ".join(f"{gain:.2f}" for gain in np.median(ratios, axis=1))
    return (
        f"tokens/s without {off:.1f}, with {on:.1f}; gain {gain_of(ratios):.2f} ({low:.2f} to "
        f"{high:.2f}): {gains}; accepted {accepted} of {drafted}, tokens per run "
        f"{decoded / max(1, decoded - accepted):.2f}; {different} answers differ"
    )


def _rate(reply: Reply) -> float:
    rate = reply.timings.tokens_per_second
    if rate is None:
        raise SystemExit("an answer has fewer than two tokens: nothing to measure")
    return rate


def _busy_seconds() -> float:
    """Processor time of the whole machine, all cores together; that of guests is in the user's."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    idle, waiting = fields[3:5]
    return float(sum(fields) - idle - waiting) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    with load(arguments.bundle, threads=arguments.threads, speculation="auto") as lm:
        others, begun = _busy_seconds() - sum(os.times()[:2]), time.perf_counter()
        pairs = [answer_pairs(lm, task, arguments.rounds) for task in EXTRACTION]
        elapsed = time.perf_counter() - begun
        others = _busy_seconds() - sum(os.times()[:2]) - others
    print(f"{report(pairs)}; others used {others / elapsed:.2f} cores for {elapsed:.0f} s")


if __name__ == "__main__":
    main()
