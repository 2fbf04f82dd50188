"""The error tree. Every message says what was wrong, what was expected and what to do.

    EdgeLMError
    ├── BadInput          an argument or a text that cannot be used
    │   ├── UnknownName   a name that is not in a table; the message lists the known ones
    │   ├── ContextFull   a prompt (or a conversation) longer than the context
    │   └── Busy          a generation that was overtaken: another one has begun on its model
    ├── BadCheckpoint     a source model that is incomplete, inconsistent or unsafe
    ├── BadBundle         a bundle that is damaged, changed or from another version
    ├── MissingPackage    an optional package is needed; the message names the extra
    ├── DoesNotFit        not enough memory or disk for what was asked
    ├── Diverged          training whose loss is no longer a number
    └── GateFailed        the exported graph is further from its source than the gate allows

Command lines print `error: <message>` and exit with 2, except GateFailed, which exits with 1:
the input was right, the result was not good enough.
"""


class EdgeLMError(Exception):
    """The base of every error that edgelm raises on purpose."""


class BadInput(EdgeLMError):
    """An argument or a text that cannot be used."""


class UnknownName(BadInput):
    """A name that is not in a table; the message lists the known ones."""


class ContextFull(BadInput):
    """A prompt or a conversation that is longer than the context."""


class Busy(BadInput):
    """A generation that was overtaken: another one has begun on its model."""


class BadCheckpoint(EdgeLMError):
    """A source model that is incomplete, inconsistent or unsafe to read."""


class BadBundle(EdgeLMError):
    """A bundle that is damaged, changed since it was written, or of another version."""


class MissingPackage(EdgeLMError):
    """An optional package is needed; the message names the extra that brings it."""


class DoesNotFit(EdgeLMError):
    """Not enough memory or disk for what was asked."""


class Diverged(EdgeLMError):
    """Training whose loss is no longer a number."""


class GateFailed(EdgeLMError):
    """The exported graph is further from its source than the gate allows."""
