"""Names of evaluation tasks such as `perplexity:valid.jsonl` (see `evaluate`)."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edgelm.errors import BadInput, UnknownName

KINDS = ("perplexity", "kl", "last_word", "multiple_choice", "ifeval", "lm-eval")
_RENAMED = {"last-word": "last_word", "choice": "multiple_choice"}


class Task(NamedTuple):
    """A kind of task (see `TASKS`) and its file or name."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{Path(self.name).name}"


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
        if kind not in KINDS or not separator or not name:
            known = ", ".join(f"{kind}:..." for kind in KINDS)
            raise UnknownName(f"unknown task {text!r}; known: {known}")
        if kind != "lm-eval" and not Path(name).is_file():
            raise BadInput(f"task {text!r}: no such file: {name}")
        tasks.append(Task(kind, name))
    twice = [name for name, count in Counter(map(str, tasks)).items() if count > 1]
    if twice:
        raise BadInput(f"two tasks are named {twice[0]}; rename one of their files")
    return tasks
