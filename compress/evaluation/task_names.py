"""Names of evaluation tasks such as `perplexity:valid.jsonl` (see `run_tasks`)."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edgelm.errors import BadInput, UnknownName

KINDS = (
    "perplexity",
    "kl",
    "last_word",
    "multiple_choice",
    "ifeval",
    "lm-eval",
    "mt_bench",
    "rag",
    "rag_choice",
    "functions",
    "function_choice",
    "needle",
    "persona",
)
# These have rows of their own, and take a file of others; the last two take none.
BUILT_IN = ("rag", "rag_choice", "functions", "function_choice", "needle", "persona")
_WITHOUT_FILE = ("needle", "persona")
_RENAMED = {"last-word": "last_word", "choice": "multiple_choice"}


class Task(NamedTuple):
    """A kind of task (see `TASKS`) and its file or name; "" for rows that are built in."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{Path(self.name).name}" if self.name else self.kind


def parse_tasks(texts: Sequence[str]) -> list[Task]:
    """Parse tasks such as `perplexity:valid.jsonl`.

    Raises:
        UnknownName: unknown kind of task.
        BadInput: no such file, or two tasks of the same name.
    """
    tasks = []
    for text in texts:
        kind, separator, name = text.partition(":")
        if kind in _RENAMED:
            raise UnknownName(f"task {text!r}: {kind}: is now called {_RENAMED[kind]}:; rename it")
        if text in BUILT_IN:
            tasks.append(Task(text, ""))
            continue
        if kind not in KINDS or not separator or not name:
            known = ", ".join(f"{kind}:..." for kind in KINDS if kind not in BUILT_IN)
            raise UnknownName(
                f"unknown task {text!r}; known: {known}, and with rows of their own: "
                f"{', '.join(BUILT_IN)}"
            )
        if kind in _WITHOUT_FILE:
            raise UnknownName(f"task {text!r}: {kind} makes its own rows; write {kind} alone")
        if kind != "lm-eval" and not Path(name).is_file():
            raise BadInput(f"task {text!r}: no such file: {name}")
        tasks.append(Task(kind, name))
    twice = [name for name, count in Counter(map(str, tasks)).items() if count > 1]
    if twice:
        raise BadInput(f"two tasks are named {twice[0]}; rename one of their files")
    return tasks
