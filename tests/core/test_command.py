"""Sizes in, errors out, exit codes."""

import argparse

import pytest

from edgelm.command import format_bytes, parse_size, positive_int, run_command
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


@pytest.mark.parametrize("text", ["", "MB", "1.5 TB", "-1", "1e9", "12 apples", "1.2.3", "."])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"is no size; expected e\.g\. 98MB or"):
        parse_size(text)


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


def test_unexpected_error_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError, match="our own mistake"):
        raising(ZeroDivisionError("our own mistake"))
