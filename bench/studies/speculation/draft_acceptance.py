"""What of a draft model's proposals would be accepted on chat prompts.

    python -m bench.studies.speculation.draft_acceptance BUNDLE PROMPTS.jsonl [--drafts FOLDER...]
        [--answers 160] [--frequent ANSWERS.jsonl --sizes 2048,4096,8192]

BUNDLE answers each `prompt` greedily. Each draft (a bundle; BUNDLE/draft by default) reads the same
answers, and its most likely tokens are compared with them. Since a drafted token counts only
behind others that were right, that gives exactly the tokens that a run of BUNDLE with k drafted
ones would give, for any k, without running it. `--frequent` does the same for drafts that only
propose the most frequent tokens of some answers, whose head would be that much smaller (arXiv
2502.14856). What acceptance a draft needs to pay: see verification_cost.
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import edgelm
from bench.studies.speculation.verification_cost import open_bundle
from edgelm.runtime import LanguageModel
from edgelm.runtime.engines.session import Session

_DRAFTED = (1, 2, 3, 4, 6)
_CHUNK = 16  # tokens whose logits are computed in one run
Right = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.float32]  # logits [tokens of the answer, vocabulary]


class Text(NamedTuple):
    """A prompt and the bundle's greedy answer, as tokens."""

    prompt: list[int]
    answer: list[int]


class Agreement(NamedTuple):
    """A draft on one answer: whether it would have chosen each token, and sum(min(p, q))."""

    right: Right
    overlap: npt.NDArray[np.float32]


def rows_of(session: Session, text: Text, vocab: int) -> Rows:
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


def frequent_tokens(path: Path, tokenizer: Any, vocab: int) -> npt.NDArray[np.int64]:
    """All token ids, the most frequent in the answers of a file first."""
    counts: Counter[int] = Counter()
    for line in path.read_text(encoding="utf-8").splitlines():
        for message in json.loads(line)["messages"]:
            if message["role"] == "assistant":
                counts.update(tokenizer.encode(message["content"], special=False).tolist())
    order = [token for token, _ in counts.most_common()]
    return np.array([*order, *sorted(set(range(vocab)) - set(order))], dtype=np.int64)


def greedy_answers(lm: LanguageModel, prompts: Path, tokens: int) -> list[Text]:
    """The bundle's answers to a file of prompts."""
    texts = []
    for line in prompts.read_text(encoding="utf-8").splitlines():
        messages: Any = [{"role": "user", "content": json.loads(line)["prompt"]}]
        lm.session.rewind(0)
        reply = lm.generate(messages, temperature=0, max_tokens=tokens)
        texts.append(Text(list(lm.chat_tokens(messages)), list(reply.tokens)))
    return texts


def print_rows(
    draft: Path,
    texts: Sequence[Text],
    targets: Sequence[Rows],
    *,
    cuts: Mapping[str, npt.NDArray[np.int64]],
    threads: int | None,
) -> None:
    """The rows of a draft, whole and for each of `cuts`: the tokens that it may propose."""
    found: dict[str, list[Agreement]] = {draft.name: []}
    found |= {f"{draft.name}, {name}": [] for name in cuts}
    with open_bundle(draft, threads) as session:
        for text, target in zip(texts, targets, strict=True):
            rows = rows_of(session, text, target.shape[1])
            proposals = [rows, *(_only(rows, tokens) for tokens in cuts.values())]
            for agreements, one in zip(found.values(), proposals, strict=True):
                agreements.append(agreement(one, target, text.answer))
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


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--drafts", type=Path, nargs="+")
    parser.add_argument("--answers", type=int, default=160, help="tokens of an answer")
    parser.add_argument("--frequent", type=Path, help="answers that frequencies are counted in")
    parser.add_argument("--sizes", type=_numbers, default=[2048, 4096, 8192])
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    cuts = {}
    with edgelm.load(options.bundle, threads=options.threads, speculation="off") as lm:
        texts = greedy_answers(lm, options.prompts, options.answers)
        if options.frequent:
            ranked = frequent_tokens(options.frequent, lm.tokenizer, lm.session.vocab_size)
            cuts = {f"{size} frequent tokens": ranked[:size] for size in options.sizes}
    with open_bundle(options.bundle, options.threads) as session:
        targets = [rows_of(session, text, session.vocab_size) for text in texts]
    total = sum(len(text.answer) for text in texts)
    print(f"{len(texts)} prompts, {total} tokens of greedy answers\n")
    columns = "".join(f" k={k} |" for k in _DRAFTED)
    print(f"| draft | greedily right | sum(min(p, q)) |{columns}\n|---|{'---:|' * 7}")
    for draft in options.drafts or [options.bundle / "draft"]:
        print_rows(draft, texts, targets, cuts=cuts, threads=options.threads)


if __name__ == "__main__":
    main()
