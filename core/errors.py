"""The error tree. Every message says what was wrong, what was expected and what to do.

    EdgeLMError
    ├── BadInput          an argument or a text that cannot be used
    │   ├── UnknownName   a name that is not in a table; the message lists the known ones
    │   ├── ContextFull   a prompt (or a conversation) longer than the context
    │   └── Busy          a model or chat that is used where it is still generating
    ├── BadCheckpoint     a source model that is incomplete, inconsistent or unsafe
    ├── BadBundle         a bundle that is damaged, changed or from another version
    ├── MissingPackage    an optional package is needed; the message names the extra
    ├── DoesNotFit        not enough memory or disk for the request
    ├── Diverged          training whose loss became NaN or infinite
    └── GateFailed        the exported graph differs more from its source than the gate allows

Commands print `error: <message>` and exit with 2; with 1 for GateFailed, where the input was valid
but the result was not good enough.
"""

_MOST_CHARACTERS = 6_000  # a path alone may have 4,096
_LAST_CHARACTERS = 1_000


class EdgeLMError(Exception):
    """The base class of all errors that edgelm raises.

    The middle of a long message is left out: names in a foreign file can be megabytes.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) <= _MOST_CHARACTERS:
            return text
        return f"{text[: _MOST_CHARACTERS - _LAST_CHARACTERS]} [...] {text[-_LAST_CHARACTERS:]}"


class BadInput(EdgeLMError):
    """An argument or a text that cannot be used."""


class UnknownName(BadInput):
    """A name that is not in a table; the message lists the known ones."""


class ContextFull(BadInput):
    """A prompt or a conversation that is longer than the context."""


class Busy(BadInput):
    """A model or a chat is used again while it generates, by a caller that cannot wait."""


class BadCheckpoint(EdgeLMError):
    """A source model that is incomplete, inconsistent or unsafe to read."""


class BadBundle(EdgeLMError):
    """A bundle that is damaged, changed since it was written, or of another version."""


class MissingPackage(EdgeLMError):
    """An optional package is needed; the message names the extra that brings it."""


class DoesNotFit(EdgeLMError):
    """Not enough memory or disk for the request."""


class Diverged(EdgeLMError):
    """Training whose loss became NaN or infinite."""


class GateFailed(EdgeLMError):
    """The exported graph differs more from its source than the gate allows."""
