"""What came of one case."""

import re
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import edgelm
from edgelm.errors import EdgeLMError

Verdict = Literal["refused", "equal", "other", "wrong", "exception", "crash", "hang", "memory"]
"""
refused    an EdgeLMError
equal      it opened, and is what the independent reader says
other      it opened, and nothing says that it should be refused or equal
wrong      it opened, and the independent reader says something else; or a bad message
exception  anything that is not an EdgeLMError
crash      the process died
hang       it took longer than the limit
memory     it grew by more than the limit
"""
FAILURES = frozenset({"wrong", "exception", "crash", "hang", "memory"})
_MOST_MESSAGE = 10_000  # characters; a path alone may have 4,096
_PACKAGE = [str(Path(path)) for path in edgelm.__path__]
_ROOT = str(Path(__file__).resolve().parents[2])
_DUMPED = re.compile(r'File "([^"]+)", line (\d+) in (\S+)')


class Wrong(AssertionError):
    """An opened object is not what the independent reader says."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One case's verdict, where it failed, and what the mutation was."""

    kind: str
    seed: int
    case: int
    verdict: Verdict
    place: str = ""
    detail: str = ""
    note: str = ""
    seconds: float = 0.0
    peak_bytes: int = 0

    @property
    def failed(self) -> bool:
        """Whether this must not happen."""
        return self.verdict in FAILURES

    @property
    def replay(self) -> str:
        """The command that runs this case again."""
        return f"python -m tests.fuzz --kind {self.kind} --seed {self.seed} --case {self.case}"

    def __str__(self) -> str:
        place = f" at {self.place}" if self.place else ""
        return f"{self.verdict}{place}: {self.detail} [{self.note}]"


def verdict_of(error: BaseException) -> tuple[Verdict, str, str]:
    """Verdict, place and detail of what opening a case raised."""
    detail = f"{type(error).__name__}: {shortened(str(error))}"
    if isinstance(error, EdgeLMError):
        if not str(error).strip() or len(str(error)) > _MOST_MESSAGE:
            problem = f"a message of {len(str(error))} characters: {detail}"
            return "wrong", place_of(error), problem
        return "refused", "", detail
    if isinstance(error, Wrong):
        return "wrong", "", shortened(str(error))
    if isinstance(error, MemoryError):
        return "memory", place_of(error), detail
    return "exception", place_of(error), detail


def place_of(error: BaseException) -> str:
    """The innermost line of edgelm that an exception came through."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [(frame.filename, frame.lineno or 0, frame.name) for frame in reversed(frames)]
    return next(filter(None, (_place(*place) for place in places)), "outside edgelm")


def place_in_dump(text: str) -> str:
    """The innermost line of edgelm in what faulthandler wrote last."""
    last = text[text.rfind("most recent call first") :]
    places = ((name, int(line), function) for name, line, function in _DUMPED.findall(last))
    return next(filter(None, (_place(*place) for place in places)), "outside edgelm")


def _place(name: str, line: int, function: str) -> str:
    for package in _PACKAGE:
        if name.startswith(package):
            return f"edgelm{name[len(package) :]}:{line} {function}"
    inside = name.startswith(_ROOT) and "site-packages" not in name and "/tests/" not in name
    return f"{name[len(_ROOT) + 1 :]}:{line} {function}" if inside else ""


def shortened(text: str, most: int = 300) -> str:
    """One line of at most `most` characters."""
    line = text.replace("\n", " ").encode("utf-8", "backslashreplace").decode()
    return line if len(line) <= most else f"{line[: most - 3]}..."
