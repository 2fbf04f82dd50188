"""JetPack releases: the Jetson Linux, CUDA and TensorRT versions of each."""

from functools import cache
from pathlib import Path

import msgspec


class JetPack(msgspec.Struct, frozen=True):
    """One release. `l4t` are its Jetson Linux versions, or prefixes of them."""

    jetpack: str
    l4t: tuple[str, ...]
    cuda: str
    tensorrt: str
    modules: tuple[str, ...]
    note: str = ""


class _File(msgspec.Struct, frozen=True):
    release: tuple[JetPack, ...]


@cache
def jetpacks() -> tuple[JetPack, ...]:
    """Every known release, oldest first."""
    path = Path(__file__).with_name("jetpack.toml")
    return msgspec.toml.decode(path.read_bytes(), type=_File).release


def jetpack_of(l4t: str) -> JetPack | None:
    """The release that a Jetson Linux version such as 36.4.3 belongs to, if it is known."""
    for release in jetpacks():
        if any(l4t == known or l4t.startswith(f"{known}.") for known in release.l4t):
            return release
    return None
