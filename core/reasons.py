"""The text of a library's error, short enough to be quoted in a message."""

import re

_MAX_CHARACTERS = 500


def reason(error: BaseException) -> str:
    """The text of an error in one line of bounded length; its type if it has no text.

    Libraries quote the input that they reject, which can be megabytes.
    """
    text = str(error)
    if isinstance(error, OSError):
        text = re.sub(r"^\[(Errno|WinError) -?\d+\] ", "", text)
    return one_line(text) or type(error).__name__


def one_line(text: str) -> str:
    """A text with all white space as single spaces, cut to 500 characters."""
    # Cut before splitting, which needs a multiple of the text's memory.
    line = " ".join(text[: 20 * _MAX_CHARACTERS].split())
    return line if len(line) <= _MAX_CHARACTERS else f"{line[:_MAX_CHARACTERS]}..."
