"""What every command line of edgelm shares: sizes in, errors out, exit codes."""

import argparse
import logging
import re
import sys
from collections.abc import Callable

from edgelm.errors import EdgeLMError, GateFailed

_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_size(text: str) -> int:
    """Bytes from `98MB`, `1.5GiB` or a plain number.

    >>> parse_size("1.5 KiB")
    1536
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([kmg]i?)?b?\s*", text.lower())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; expected e.g. 98MB or 1.5GiB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def positive_int(text: str) -> int:
    """A whole number above zero."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above zero")
    return value


def format_bytes(count: float) -> str:
    """Decimal megabytes or gigabytes, as file sizes are quoted."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def run_command(body: Callable[[], int | None]) -> int:
    """Run a command: expected errors in one line, exit 2 (or 1 for a failed gate)."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        return body() or 0
    except GateFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except EdgeLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
