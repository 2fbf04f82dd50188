"""Sizes in, errors out, exit codes."""

import argparse
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgelm.cli import (
    bytes_argument,
    format_bytes,
    parse_bytes,
    parse_size,
    positive_int,
    run_command,
    size_argument,
)
from edgelm.errors import BadBundle, BadInput, DoesNotFit, EdgeLMError, GateFailed, UnknownName


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("4096", 4096),
        ("98MB", 98_000_000),
        ("98 mb", 98_000_000),
        ("1.5GiB", 3 * 2**29),
        ("1.5 KiB", 1536),
        ("2k", 2000),
        ("7g", 7_000_000_000),
        (" 12 B ", 12),
    ],
)
def test_size(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "MB", "1.5 TB", "-1", "1e9", "12 apples", "1.2.3", ".", "\u0661MB", "9" * 400 + "GB"],
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(BadInput, match=r"is not a size; expected e\.g\. 98MB or"):
        parse_size(text)
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not a size; expected e\.g\. 98MB or"):
        size_argument(text)


def test_no_size_at_all() -> None:
    with pytest.raises(BadInput, match=r"0 bytes is smaller than any model; .* e\.g\. 98MB$"):
        parse_bytes("0")


@pytest.mark.parametrize("text", ["1", "100", " 512 ", "999999", "1.5"])
def test_size_with_a_forgotten_unit(text: str) -> None:
    expected = rf"give it with a unit, e\.g\. {text.strip()}MB$"
    with pytest.raises(BadInput, match=expected):
        parse_bytes(text)
    with pytest.raises(argparse.ArgumentTypeError, match=expected):
        bytes_argument(text)
    assert size_argument(text) == parse_size(text)  # also a number of tokens


@pytest.mark.parametrize(
    ("text", "expected"), [("1000000", 10**6), ("100MB", 10**8), ("1B", 1), ("2KB", 2000)]
)
def test_size_with_its_unit(text: str, expected: int) -> None:
    assert parse_bytes(text) == bytes_argument(text) == expected


def test_positive_int() -> None:
    assert positive_int("17") == 17


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "many", ""])
def test_what_is_not_positive(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number above zero"):
        positive_int(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0.0 MB"),
        (98_040_000, "98.0 MB"),
        (999_900_000, "999.9 MB"),
        (1_000_000_000, "1.00 GB"),
        (6_254_000_000, "6.25 GB"),
    ],
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text


def raising(error: BaseException) -> int:
    def body() -> int:
        raise error

    return run_command(body)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_code_of_the_body(code: int) -> None:
    assert run_command(lambda: code) == code


def test_no_code_is_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: None) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GateFailed("too far"), 1),
        (EdgeLMError("too far"), 2),
        (BadInput("too far"), 2),
        (UnknownName("too far"), 2),
        (BadBundle("too far"), 2),
        (DoesNotFit("too far"), 2),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_expected_error_is_one_line(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(error) == code
    assert capsys.readouterr() == ("", "error: too far\n")


def test_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_closed_pipe_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    # edge-export --list-targets | head -1
    assert raising(BrokenPipeError()) == 0
    assert capsys.readouterr().err == ""


def test_unexpected_error_is_one_line_and_another_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(ZeroDivisionError("our own\nmistake")) == 3
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: unexpected ZeroDivisionError: our own mistake (test_cli.py:")
    assert "report it" in line
    assert "EDGELM_DEBUG=1" in line


def test_the_trace_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGELM_DEBUG", "1")
    assert raising(ZeroDivisionError("our own mistake")) == 3
    assert "Traceback (most recent call last)" in capsys.readouterr().err


class PanicException(BaseException):
    """What Rust's bindings raise: no Exception."""


def test_a_panic_of_native_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(PanicException("index out of bounds")) == 3
    assert "unexpected PanicException: index out of bounds" in capsys.readouterr().err


def test_exit_passes() -> None:
    with pytest.raises(SystemExit):
        raising(SystemExit(5))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "/data/x"), "/data/x: Permission denied"),
        (OSError(28, "No space left on device", "a", None, "b"), "b: No space left on device"),
        (OSError(30, "Read-only file system"), "Read-only file system"),
        (OSError("of a library"), "of a library"),
        (FileNotFoundError(2, "No such file or directory", b"\xff"), "\\xff: No such file"),
        (ValueError("embedded null byte"), "a path contains a NUL character"),
        (MemoryError(), "not enough memory"),
        (ModuleNotFoundError("", name="torch"), "this needs torch: pip install 'edgelm[export]'"),
        (ModuleNotFoundError("", name="trl.x"), "this needs trl.x: pip install 'edgelm[align]'"),
    ],
)
def test_what_the_system_refuses(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(error) == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")


def test_our_own_missing_module_is_an_internal_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(ModuleNotFoundError("No module named 'edgelm.x'", name="edgelm.x")) == 3
    assert "edgelm.x" in capsys.readouterr().err


def test_full_standard_output() -> None:
    code = "from edgelm.cli import run_command as run; raise SystemExit(run(lambda: print('x')))"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=full,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONUNBUFFERED": ""},
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == b"error: standard output: No space left on device\n"


def test_closed_streams_do_not_become_files(tmp_path: Path) -> None:
    code = f"""
import os, sys
from edgelm.cli import run_command
def body():
    with open({str(tmp_path / "x")!r}, "w") as file:
        assert file.fileno() > 2
        os.write(1, b"noise of a library")
    assert not sys.stdin.isatty() and sys.stdin.read() == ""
    print("an answer", flush=True)
    print("a line of the log", file=sys.stderr, flush=True)
raise SystemExit(run_command(body))
"""
    command = ["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code]
    assert subprocess.run(command, check=False).returncode == 0
    assert (tmp_path / "x").read_text() == ""


@pytest.mark.parametrize("command", ["bench", "compress", "devices", "export", "runtime"])
def test_every_command_line_goes_through_it(command: str) -> None:
    main = importlib.import_module(f"edgelm.{command}.cli").main
    assert "run_command" in main.__code__.co_names
