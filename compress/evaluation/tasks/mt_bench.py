"""Dialogs of several turns, in the form of MT-Bench (Zheng et al. 2023, arXiv 2306.05685).

A row has `turns`, the user's messages. A model answers them one after another; what its answers are
worth, a judge says (edgelm.bench.evaluation.judge).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from edgelm.compress.evaluation.backend import Backend, Conversation, Progress, no_progress
from edgelm.compress.evaluation.rows import task_rows
from edgelm.errors import BadInput

Dialog = tuple[str, ...]
"""The answers to the turns of one row."""


def read_turns(name: str, limit: int | None) -> list[Dialog]:
    """The user's turns of each row.

    Raises:
        BadInput: a row of another form.
    """
    found = []
    for where, row in task_rows(name, limit, {"turns": list}):
        turns = row["turns"]
        if not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
            raise BadInput(f"{where}: expected `turns`, the user's messages as texts")
        found.append(tuple(turns))
    return found


def dialogs(
    backend: Backend,
    rows: Sequence[Dialog],
    max_new_tokens: int,
    progress: Progress = no_progress,
) -> list[Dialog]:
    """The model's answers, turn by turn; what it said before stays in the conversation."""
    messages: list[list[Mapping[str, Any]]] = [[] for _ in rows]
    answered: list[list[str]] = [[] for _ in rows]
    longest = max(map(len, rows))
    for turn in range(longest):
        open_rows = [row for row in range(len(rows)) if turn < len(rows[row])]
        for row in open_rows:
            messages[row].append({"role": "user", "content": rows[row][turn]})

        def show(done: int, of: int, turn: int = turn) -> None:
            progress(turn * of + done, longest * of)

        asked = [Conversation(tuple(messages[row])) for row in open_rows]
        answers = backend.generate(asked, max_new_tokens, show)
        for row, answer in zip(open_rows, answers, strict=True):
            messages[row].append({"role": "assistant", "content": answer.text})
            answered[row].append(answer.text)
    return [tuple(one) for one in answered]
