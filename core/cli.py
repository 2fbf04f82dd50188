"""What the commands share: argument types, error messages and exit codes."""

import argparse
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

from edgelm.error_messages import explain
from edgelm.errors import BadInput

_SIZE = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?|\.[0-9]{1,18})\s*([kmg]i?)?b?\s*")
_MIN_PLAIN_SIZE = 1_000_000  # fewer bytes without a unit are taken for a forgotten unit
_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_size(text: str) -> int:
    """The number of bytes in `98MB`, `1.5GiB` or a plain number.

    >>> parse_size("1.5 KiB")
    1536

    Raises:
        BadInput: the text is not a size.
    """
    match = _SIZE.fullmatch(text.lower())
    if not match:
        raise BadInput(f"{text!r} is not a size; expected e.g. 98MB or 1.5GiB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def parse_bytes(text: str) -> int:
    """The number of bytes in a size of memory or of a file, as `parse_size`.

    Raises:
        BadInput: it is not a size, or a number without a unit that is too small for any model.
    """
    size = parse_size(text)
    if not any(map(str.isalpha, text)):
        check_bytes(size, text)
    return size


def check_bytes(size: int, text: str) -> None:
    """Refuse a number of bytes, written as `text` without a unit, that is too small for any model.

    Raises:
        BadInput: it is; the message names the unit that was probably meant.
    """
    if size < _MIN_PLAIN_SIZE:
        example = f"{text.strip()}MB" if size else "98MB"
        raise BadInput(
            f"a maximum size of {size} bytes is smaller than any model; give it with a unit, e.g. "
            f"{example}"
        )


def size_argument(text: str) -> int:
    """`parse_size` for argparse, with argparse's own error."""
    return _argument(parse_size, text)


def bytes_argument(text: str) -> int:
    """`parse_bytes` for argparse, with argparse's own error."""
    return _argument(parse_bytes, text)


def _argument(parse: Callable[[str], int], text: str) -> int:
    try:
        return parse(text)
    except BadInput as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive_int(text: str) -> int:
    """A whole number above zero, for argparse."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above zero")
    return value


def format_bytes(count: float) -> str:
    """A size in decimal megabytes or gigabytes, as file sizes are usually given."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def run_command(body: Callable[[], int | None]) -> int:
    """Run a command and print an error as one line.

    Returns:
        The body's own exit code or 0; 1 for a failed quality gate; 2 for bad input and for errors
        of the system (a full disk, a missing permission); 3 for an error in edgelm itself; 130 if
        it was interrupted. EDGELM_DEBUG=1 prints the traceback.
    """
    _prepare_streams()
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        code = body() or 0
        _flush()
        return code
    except (SystemExit, GeneratorExit):
        raise
    except BrokenPipeError:
        _drop_output()
        return 0
    except KeyboardInterrupt:
        _print_error("interrupted")
        return 130
    # Native code in Rust raises errors that are not an Exception.
    except BaseException as error:
        if os.environ.get("EDGELM_DEBUG"):
            traceback.print_exc()
        code, line = explain(error)
        _print_error(f"error: {line}")
        if isinstance(error, OSError):
            _drop_output()  # standard output may be on the full disk
        return code


def _prepare_streams() -> None:
    """Open closed standard streams, or the next files that are opened would take their place."""
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    for handle, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # as Python leaves those that were closed
            stream = os.fdopen(handle, "w" if handle else "r", encoding="utf-8", closefd=False)
            setattr(sys, name, stream)
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="backslashreplace")


def _print_error(line: str) -> None:
    with suppress(OSError, ValueError):  # standard error may also be full or closed
        print(line, file=sys.stderr, flush=True)


def _flush() -> None:
    """Write buffered output now: Python would do so at exit, where errors are lost."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        error.filename = error.filename or "standard output"
        raise


def _drop_output() -> None:
    """Discard buffered output that failed, so that Python does not retry at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        with suppress(OSError, ValueError, AttributeError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
