"""The answer of a check."""

from typing import Literal

import msgspec

Severity = Literal["error", "warning", "ok", "unknown"]


class Verdict(msgspec.Struct, frozen=True):
    """A check's answer.

    error    something will fail, or silently run in the wrong place
    warning  it works, but more slowly or with less memory than it could
    ok       no problem; `why` and `fix` are empty
    unknown  the check could not be made; `why` gives the reason, `fix` what makes it possible
    """

    severity: Severity
    what: str
    why: str = ""
    fix: str = ""


def error(what: str, *, why: str, fix: str) -> Verdict:
    """Something will fail, or silently run in the wrong place."""
    return Verdict("error", what, why, fix)


def warning(what: str, *, why: str, fix: str) -> Verdict:
    """It works, but more slowly or with less memory than it could."""
    return Verdict("warning", what, why, fix)


def ok(what: str) -> Verdict:
    """No problem."""
    return Verdict("ok", what)


def unknown(what: str, *, why: str, fix: str) -> Verdict:
    """The check could not be made; `why` gives the reason, `fix` what makes it possible."""
    return Verdict("unknown", what, why, fix)
