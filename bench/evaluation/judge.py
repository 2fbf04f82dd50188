"""A judge of two models' answers: a model behind an OpenAI-compatible URL, or a bundle.

The judge sees both dialogs in both orders. A model wins where it wins in both; anything else is a
tie, so that a judge that prefers the first answer decides nothing (arXiv 2306.05685, section 3.4).
"""

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from edgelm.bench.evaluation.subjects import is_bundle
from edgelm.compress.evaluation.metrics import Metric, fraction_of, share_of
from edgelm.compress.evaluation.tasks.mt_bench import Dialog
from edgelm.errors import BadInput
from edgelm.reasons import reason
from edgelm.runtime.generation.options import GREEDY, Options
from edgelm.runtime.loading import load

Judge = Callable[[list[dict[str, str]]], str]
"""Answers messages."""
_MAX_TOKENS = 512
_SECONDS = 120
_MAX_BYTES = 1 << 20
_VERDICT = re.compile(r"\[\[([ABC])\]\]")
# MT-Bench's own words, for several turns.
_SYSTEM = (
    "Please act as an impartial judge and evaluate the quality of the responses provided by two AI "
    "assistants to the user questions. You should choose the assistant that follows the user's "
    "instructions and answers the user's questions better. Your evaluation should consider factors "
    "such as the helpfulness, relevance, accuracy, depth, creativity, and level of detail of their "
    "responses. Avoid any position biases and do not allow the length of the responses to "
    "influence your evaluation. Be as objective as possible. After providing a short explanation, "
    'output your final verdict by strictly following this format: "[[A]]" if assistant A is '
    'better, "[[B]]" if assistant B is better, and "[[C]]" for a tie.'
)


def open_judge(where: str, model: str, stack: ExitStack) -> Judge:
    """A judge by its URL (up to `/v1`) or by its bundle.

    Args:
        where: the URL or the folder.
        model: the model's name at the URL.
        stack: closes the bundle.

    Raises:
        BadInput: neither of both.
    """
    if where.startswith(("http://", "https://")):
        return UrlJudge(where, model)
    if not is_bundle(where):
        raise BadInput(
            f"--judge {where!r} is not a bundle; expected the folder of one, or a URL of OpenAI's "
            "API such as http://127.0.0.1:8080/v1"
        )
    opened = stack.enter_context(load(where))

    def ask(messages: list[dict[str, str]]) -> str:
        options = Options(**GREEDY, max_tokens=_MAX_TOKENS)
        return opened.generate(messages, **options).text  # type: ignore[arg-type]

    return ask


class UrlJudge:
    """A model behind OpenAI's chat completions; OPENAI_API_KEY is sent if it is set."""

    def __init__(self, url: str, model: str) -> None:
        self.url = f"{url.rstrip('/')}/chat/completions"
        self.model = model

    def __call__(self, messages: list[dict[str, str]]) -> str:
        """The answer.

        Raises:
            BadInput: the server refuses, or answers something else.
        """
        body = {
            "model": self.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": _MAX_TOKENS,
        }
        request = urllib.request.Request(self.url, json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        if key := os.environ.get("OPENAI_API_KEY"):
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as response:
                values: Any = json.loads(response.read(_MAX_BYTES))
            return str(values["choices"][0]["message"]["content"])
        except (OSError, urllib.error.URLError, ValueError, LookupError, TypeError) as error:
            raise BadInput(
                f"the judge at {self.url} did not answer: {reason(error)}; check that it runs, "
                "--judge-model, and the key in OPENAI_API_KEY"
            ) from None


def judge_dialogs(
    judge: Judge,
    turns: Sequence[Dialog],
    ours: Sequence[Dialog],
    theirs: Sequence[Dialog],
    progress: Callable[[int, int], None],
) -> dict[str, Metric]:
    """`preferred` is 1 for a win of ours, 1/2 for a tie; `same in both orders` a share of rows."""
    scores, same = [], []
    for number, row in enumerate(zip(turns, ours, theirs, strict=True), 1):
        asked, mine, other = row
        first, second = _ask(judge, asked, mine, other), _ask(judge, asked, other, mine)
        mirrored = {"A": "B", "B": "A"}.get(second, second)
        same.append(first == mirrored)
        scores.append({"A": 1.0, "B": 0.0}.get(first, 0.5) if first == mirrored else 0.5)
        progress(number, len(turns))
    return {"preferred": fraction_of(scores), "same in both orders": share_of(same)}


def _ask(judge: Judge, turns: Dialog, first: Dialog, second: Dialog) -> str:
    """A, B or C; C where the judge gives no verdict."""
    parts = [
        f"<|The Start of Assistant {name}'s Conversation with User|>\n\n"
        + "\n\n".join(
            f"### User:\n{asked}\n\n### Assistant {name}:\n{answer}"
            for asked, answer in zip(turns, dialog, strict=True)
        )
        + f"\n\n<|The End of Assistant {name}'s Conversation with User|>"
        for name, dialog in (("A", first), ("B", second))
    ]
    messages = [
        {"role": "system", "content": _SYSTEM},
        {"role": "user", "content": "\n\n\n".join(parts)},
    ]
    found = _VERDICT.findall(judge(messages))
    return str(found[-1]) if found else "C"
