"""What a kind of work consists of."""

from typing import NamedTuple


class Task(NamedTuple):
    """A prompt and the answer that a good model would give."""

    prompt: str
    reference: str
