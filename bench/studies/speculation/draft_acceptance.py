"""What a draft model would gain on chat prompts: what is accepted, and what would be needed.

    python -m bench.studies.speculation.draft_acceptance BUNDLE PROMPTS.jsonl [--drafts FOLDER...]
        [--answers 160] [--frequent ANSWERS.jsonl --sizes 2048,4096,8192]

BUNDLE answers each `prompt` greedily. Each draft (a bundle; BUNDLE/draft by default) reads the same
answers, and its most likely tokens are compared with them. Since a drafted token counts only
behind others that were right, that gives exactly the tokens that a run of BUNDLE with k drafted
ones would give, for any k, without running it. `--frequent` does the same for drafts that only
propose the most frequent tokens of some answers, whose head would be that much smaller (arXiv
2502.14856).

`--costs` instead measures times, which needs a machine that does nothing else: runs of BUNDLE over
1 to 8 tokens and a run of each draft, in turn, at several depths.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import edgelm
from edgelm.bundle import read_manifest
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.onnxruntime.ort import OrtEngine
from edgelm.speculation import expected_tokens

_DRAFTED = (1, 2, 3, 4, 6)
_CHUNK = 16  # tokens whose logits are computed in one run
_SIZES = (1, 2, 3, 4, 5, 7, 8)
_ROUNDS, _WARM_UP = 25, 3
_GAIN = 1.3
Right = npt.NDArray[np.bool_]


class Text(NamedTuple):
    """A prompt and the bundle's greedy answer, as tokens."""

    prompt: list[int]
    answer: list[int]


class Agreement(NamedTuple):
    """A draft on one answer: whether it would have chosen each token, and sum(min(p, q))."""

    right: Right
    overlap: npt.NDArray[np.float32]


def session_of(folder: Path, threads: int | None) -> EngineSession:
    """A session on a bundle for a CPU."""
    manifest = read_manifest(folder)
    limits = manifest.limits
    engine = OrtEngine(
        folder,
        manifest.graph,
        capacity=min(2048, limits.context),
        prefill_chunk=limits.prefill_chunk,
        threads=threads,
    )
    return EngineSession(engine)


def rows_of(session: EngineSession, text: Text, vocab: int) -> npt.NDArray[np.float32]:
    """The logits [A, vocab] that each token of the answer is chosen from."""
    session.rewind(0)
    tokens = np.array([*text.prompt, *text.answer[:-1]], dtype=np.int64)
    start = len(text.prompt) - 1
    if start:
        session.advance(tokens[:start])
    parts = [
        session.advance(tokens[begin : begin + _CHUNK], logits=_CHUNK)[:, :vocab].copy()
        for begin in range(start, len(tokens), _CHUNK)
    ]
    return np.concatenate(parts)


def agreement(
    draft: npt.NDArray[np.float32], target: npt.NDArray[np.float32], answer: Sequence[int]
) -> Agreement:
    """Compare the draft's logits [A, V] with the target's, and its choices with the answer."""
    p, q = _softmax(draft), _softmax(target)
    return Agreement(draft.argmax(-1) == np.asarray(answer), np.minimum(p, q).sum(-1))


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)  # type: ignore[no-any-return]


def tokens_per_run(answers: Sequence[Right], drafted: int) -> float:
    """Tokens that a run with `drafted` drafted ones gives: those that are right, and one more.

    The first token of an answer comes from the prompt's run.
    """
    tokens = runs = 0
    for right in answers:
        at = 1
        while at < len(right):
            ahead = right[at : at + drafted]
            accepted = int(np.logical_and.accumulate(ahead).sum())
            gained = min(accepted + 1, len(right) - at)
            tokens, runs, at = tokens + gained, runs + 1, at + gained
    return tokens / max(1, runs)


def needed_acceptance(cost: float, drafted: int, gain: float = _GAIN) -> float | None:
    """The share of accepted tokens that gives `gain` if a run with its drafts costs `cost`."""
    shares = (step / 1000 for step in range(1001))
    return next((s for s in shares if expected_tokens(s, drafted) / cost >= gain), None)


def frequent_tokens(path: Path, tokenizer: Any, vocab: int) -> npt.NDArray[np.int64]:
    """All token ids, the most frequent in the answers of a file first."""
    counts: Counter[int] = Counter()
    for line in path.read_text(encoding="utf-8").splitlines():
        for message in json.loads(line)["messages"]:
            if message["role"] == "assistant":
                counts.update(tokenizer.encode(message["content"], special=False).tolist())
    order = [token for token, _ in counts.most_common()]
    return np.array([*order, *sorted(set(range(vocab)) - set(order))], dtype=np.int64)


def print_acceptance(options: argparse.Namespace, drafts: Sequence[Path]) -> None:
    """The table of what is accepted."""
    lines = options.prompts.read_text(encoding="utf-8").splitlines()
    ranked = None
    with edgelm.load(options.bundle, threads=options.threads, speculation="off") as lm:
        if options.frequent:
            ranked = frequent_tokens(options.frequent, lm.tokenizer, lm.session.vocab_size)
        texts, sampling = [], {"temperature": 0, "max_tokens": options.answers}
        for line in lines:
            messages: Any = [{"role": "user", "content": json.loads(line)["prompt"]}]
            lm.session.rewind(0)
            reply = lm.generate(messages, **sampling)
            texts.append(Text(list(lm.chat_tokens(messages)), list(reply.tokens)))
    columns = "".join(f" k={k} |" for k in _DRAFTED)
    total = sum(len(text.answer) for text in texts)
    print(f"{len(texts)} prompts, {total} tokens of greedy answers\n")
    print(f"| draft | greedily right | sum(min(p, q)) |{columns}\n|---|{'---:|' * 7}")
    with ExitStack() as stack:
        target = stack.enter_context(session_of(options.bundle, options.threads))
        vocab = target.vocab_size
        theirs = [rows_of(target, text, vocab) for text in texts]
        for folder in drafts:
            found: dict[str, list[Agreement]] = {}
            with session_of(folder, options.threads) as draft:
                for text, target_rows in zip(texts, theirs, strict=True):
                    rows = rows_of(draft, text, vocab)
                    cuts = {folder.name: rows}
                    if ranked is not None:
                        cuts |= {
                            f"{folder.name}, {size} frequent tokens": _only(rows, ranked[:size])
                            for size in options.sizes
                        }
                    for name, cut in cuts.items():
                        one = agreement(cut, target_rows, text.answer)
                        found.setdefault(name, []).append(one)
            for name, agreements in found.items():
                _print_row(name, agreements)


def _only(rows: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Logits of these tokens alone; the others are impossible."""
    found = np.full_like(rows, -np.inf)
    found[:, tokens] = rows[:, tokens]
    return found


def _print_row(name: str, found: Sequence[Agreement]) -> None:
    right = np.concatenate([one.right for one in found])
    overlap = np.concatenate([one.overlap for one in found])
    lengths = "".join(f" {tokens_per_run([one.right for one in found], k):.2f} |" for k in _DRAFTED)
    print(f"| {name} | {right.mean():.1%} | {overlap.mean():.3f} |{lengths}", flush=True)


def print_costs(options: argparse.Namespace, drafts: Sequence[Path]) -> None:
    """Times of runs, in turn, and the acceptance that each number of drafted tokens needs."""
    with ExitStack() as stack:
        target = stack.enter_context(session_of(options.bundle, options.threads))
        others = [stack.enter_context(session_of(one, options.threads)) for one in drafts]
        for depth in options.depths:
            times = _times(target, others, depth)
            single = times[0, 1]
            ratios = {size: times[0, size] / single for size in _SIZES}
            print(f"depth {depth}: one token {1e3 * single:.2f} ms; runs of several: ", end="")
            print(", ".join(f"{size} tokens {ratio:.2f}" for size, ratio in ratios.items()))
            for number, folder in enumerate(drafts, 1):
                each = times[number, 1] / single
                print(f"  {folder.name}: {1e3 * times[number, 1]:.2f} ms, {each:.3f} runs")
                for k in _DRAFTED:
                    cost = ratios[k + 1] + k * each
                    needed = needed_acceptance(cost, k)
                    share = "more than all" if needed is None else f"{needed:.0%}"
                    print(
                        f"    {k} drafted: {cost:.2f} runs, {_GAIN}× from "
                        f"{_GAIN * cost:.2f} tokens per run ({share} accepted)"
                    )


def _times(
    target: EngineSession, drafts: Sequence[EngineSession], depth: int
) -> dict[tuple[int, int], float]:
    """Median seconds by (0 for the target or the number of the draft, tokens of the run)."""
    tokens = np.random.default_rng(0).integers(5, target.vocab_size, depth + max(_SIZES))
    work = [(0, target, size) for size in _SIZES]
    work += [(number, draft, 1) for number, draft in enumerate(drafts, 1)]
    for session in (target, *drafts):
        session.rewind(0)
        session.advance(tokens[:depth] % session.vocab_size)
    seconds: dict[tuple[int, int], list[float]] = {(number, size): [] for number, _, size in work}
    for turn in range(_WARM_UP + _ROUNDS):
        for number, session, size in work:
            begun = time.perf_counter()
            session.advance(tokens[depth : depth + size] % session.vocab_size, logits=size)
            if turn >= _WARM_UP:
                seconds[number, size].append(time.perf_counter() - begun)
            session.rewind(depth)
    return {key: statistics.median(found) for key, found in seconds.items()}


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("prompts", type=Path, nargs="?")
    parser.add_argument("--drafts", type=Path, nargs="+")
    parser.add_argument("--answers", type=int, default=160, help="tokens of an answer")
    parser.add_argument("--frequent", type=Path, help="answers that frequencies are counted in")
    parser.add_argument("--sizes", type=_numbers, default=[2048, 4096, 8192])
    parser.add_argument("--costs", action="store_true")
    parser.add_argument("--depths", type=_numbers, default=[128, 512])
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    drafts = options.drafts or [options.bundle / "draft"]
    if options.costs:
        print_costs(options, drafts)
    elif options.prompts is None:
        parser.error("PROMPTS.jsonl is missing; each of its lines has a `prompt`")
    else:
        print_acceptance(options, drafts)


if __name__ == "__main__":
    main()
