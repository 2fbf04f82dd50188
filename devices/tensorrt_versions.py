"""Differences between the releases of TensorRT that edgelm supports.

Everything that depends on a version is a row here. Sources: NVIDIA's release notes and migration
guides, and the Python bindings of 10.16, 11.4 and TensorRT-RTX 1.7, compared name by name.
"""

import importlib
import re
from typing import Any, NamedTuple

from edgelm.errors import BadBundle, MissingPackage

TENSORRT = "tensorrt"
RTX = "tensorrt-rtx"
_MODULES = {TENSORRT: "tensorrt", RTX: "tensorrt_rtx"}
# TensorRT chooses kernels for a profile's shapes, so decoding needs its own profile. TensorRT-RTX
# specializes kernels for the shapes at run time; a second profile would only store half of the
# weights twice.
PROFILES = {TENSORRT: 2, RTX: 1}
_INSTALL = {
    RTX: "pip install 'edgelm[rtx]'",
    TENSORRT: (
        "on a Jetson it comes with JetPack: sudo apt install nvidia-jetpack, and create the "
        "environment with: python3 -m venv --system-site-packages; elsewhere pip install tensorrt"
    ),
}


class Release(NamedTuple):
    """Properties from this version on, until the next row.

    `dialects` are those that it compiles. With `typed_flag` a network is strongly typed only on
    request (from 11 on always). `ahead`: it can compile for a GPU that is not in this machine.
    """

    since: tuple[int, int]
    dialects: tuple[str, ...]
    typed_flag: bool
    ahead: bool = False


# Attention and TensorScatter are supported from 10.15 on; JetPack has them from 10.16 on.
_RELEASES: dict[str, tuple[Release, ...]] = {
    TENSORRT: (
        Release((10, 3), ("decomposed",), typed_flag=True),
        Release((10, 15), ("standard", "decomposed"), typed_flag=True),
        Release((11, 0), ("standard", "decomposed"), typed_flag=False),
    ),
    RTX: (Release((1, 4), ("standard", "decomposed"), typed_flag=True, ahead=True),),
}


def engine_family(name: str) -> str:
    """An engine's name without its version: `tensorrt` for `tensorrt-10.3`."""
    return re.sub(r"-[\d.]+$", "", name)


def release_of(family: str, version: str) -> Release:
    """The row of a version such as 10.16.1.11.

    Raises:
        BadBundle: the version is older than edgelm supports.
    """
    number = version_number(version)
    rows = [row for row in _RELEASES[family] if row.since <= number]
    if not rows:
        oldest = ".".join(map(str, _RELEASES[family][0].since))
        raise BadBundle(
            f"{family} {version} is too old to compile with, edgelm needs {oldest} or later; "
            + (
                "compile with its trtexec instead: see the bundle's README"
                if number < (10, 0)
                else "upgrade it"
            )
        )
    return rows[-1]


def oldest_with(family: str, dialect: str) -> tuple[int, int]:
    """The first version that compiles a dialect."""
    return next(row.since for row in _RELEASES[family] if dialect in row.dialects)


def version_number(version: str) -> tuple[int, int]:
    """(10, 16) of 10.16.1.11."""
    major, minor, *_ = [*version.split("."), "0"]
    return int(major), int(minor)


def load_module(family: str) -> Any:
    """The Python module of TensorRT or TensorRT-RTX.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        return importlib.import_module(_MODULES[family])
    except ImportError as error:
        raise MissingPackage(f"{family} is not installed ({error}); {_INSTALL[family]}") from None
