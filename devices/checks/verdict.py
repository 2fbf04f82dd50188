"""What a check says of the machine."""

from typing import Literal

import msgspec

Severity = Literal["error", "warning", "ok", "unknown"]


class Verdict(msgspec.Struct, frozen=True):
    """A check's answer.

    error    something will fail or lie
    warning  it works, worse than it could
    ok       looked at and found well; `fix` is empty
    unknown  could not be looked at; `why` says what stood in the way
    """

    severity: Severity
    what: str
    why: str = ""
    fix: str = ""


def error(what: str, *, why: str, fix: str) -> Verdict:
    """Something will fail or lie."""
    return Verdict("error", what, why, fix)


def warning(what: str, *, why: str, fix: str) -> Verdict:
    """It works, worse than it could."""
    return Verdict("warning", what, why, fix)


def ok(what: str) -> Verdict:
    """Looked at and found well."""
    return Verdict("ok", what)


def unknown(what: str, *, why: str, fix: str = "") -> Verdict:
    """Could not be looked at; `why` says what stood in the way."""
    return Verdict("unknown", what, why, fix)
