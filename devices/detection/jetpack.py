"""JetPack releases: the Jetson Linux, CUDA and TensorRT versions of each."""

import re
from functools import cache
from pathlib import Path

import msgspec


class JetPack(msgspec.Struct, frozen=True):
    """One release. `l4t` are its Jetson Linux versions, or prefixes of them.

    `nearest`: the Jetson Linux version that was looked up is not listed; this is the release
    before it, of the same major number, or the first of that number.
    """

    jetpack: str
    l4t: tuple[str, ...]
    cuda: str
    tensorrt: str
    modules: tuple[str, ...]
    note: str = ""
    nearest: bool = False


class _File(msgspec.Struct, frozen=True):
    release: tuple[JetPack, ...]


@cache
def jetpacks() -> tuple[JetPack, ...]:
    """Every known release, oldest first."""
    path = Path(__file__).with_name("jetpack.toml")
    return msgspec.toml.decode(path.read_bytes(), type=_File).release


@cache
def jetpack_of(l4t: str) -> JetPack | None:
    """The release of a Jetson Linux version such as 36.4.3; None if its major number is unknown.

    >>> jetpack_of("36.9.1").jetpack  # not in the table
    '6.2.3'
    """
    for release in jetpacks():
        if any(l4t == known or l4t.startswith(f"{known}.") for known in release.l4t):
            return release
    return _nearest(l4t)


def _nearest(l4t: str) -> JetPack | None:
    wanted = _numbers(l4t)
    # Two numbers at least: a lone major number may be a truncated file.
    if len(wanted) < 2:
        return None
    family = [
        (_numbers(known), release)
        for release in jetpacks()
        for known in release.l4t
        if _numbers(known)[0] == wanted[0]
    ]
    if not family:
        return None
    wanted += (0,) * (3 - len(wanted))  # 36.4 is at least 36.4.0
    older = [(numbers, release) for numbers, release in family if numbers <= wanted]
    _, release = max(older or family[:1], key=lambda entry: entry[0])
    return msgspec.structs.replace(release, nearest=True)


def _numbers(l4t: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,4}(\.\d{1,4})*", l4t):
        return ()
    return tuple(int(part) for part in l4t.split("."))
