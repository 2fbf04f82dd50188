"""Whether the installed TensorRT fits the bundle, JetPack and ONNX Runtime.

Manifests name no engine files yet, so a bundle is judged by its graph's dialect only; an engine
additionally runs on nothing but the TensorRT version that built it.
"""

import re

import msgspec

from edgelm.devices.checks.context import Context
from edgelm.devices.checks.numbers import numbers
from edgelm.devices.checks.onnxruntimes import folder
from edgelm.devices.checks.verdict import Verdict, error, ok, unknown, warning

_PACKAGES = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
_RTX_PACKAGES = ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12")
_PROVIDER = "capi/libonnxruntime_providers_tensorrt.so"
_REBUILD = "export it again for a target with the {} dialect (edge-export --list-targets)"


class _Dialect(msgspec.Struct, frozen=True):
    oldest: tuple[int, ...]
    before: tuple[int, ...] | None  # the first version that is too new
    other: str  # the dialect for the versions outside
    rtx: bool  # whether TensorRT-RTX compiles it, too


# 10.16 has the attention and cache operators of ONNX opset 24; JetPack went from 10.13 to 10.16.
_DIALECTS = {
    "decomposed": _Dialect(oldest=(10, 3), before=(10, 16), other="standard", rtx=False),
    "standard": _Dialect(oldest=(10, 16), before=None, other="decomposed", rtx=True),
}


def dialect(context: Context) -> Verdict | None:
    """Whether there is a TensorRT that builds the bundle's dialect."""
    name = context.manifest.graph.dialect if context.manifest else ""
    wanted = _DIALECTS.get(name)
    if wanted is None:
        return None
    rtx = _first(context, _RTX_PACKAGES)
    if wanted.rtx and rtx:
        return ok(f"TensorRT-RTX {rtx} compiles the {name} dialect")
    version = _first(context, _PACKAGES)
    if version is None:
        return _absent(context, name)
    found = f"TensorRT {version}, the bundle's {name} dialect needs "
    if numbers(version) < wanted.oldest:
        return error(
            f"{found}{_text(wanted.oldest)} or newer",
            why="it does not know the graph's operators",
            fix=_REBUILD.format(wanted.other),
        )
    if wanted.before and numbers(version) >= wanted.before:
        return warning(
            f"{found}one before {_text(wanted.before)}",
            why="the dialect spells out, for older versions, what this one has operators for",
            fix=_REBUILD.format(wanted.other),
        )
    return ok(f"TensorRT {version} builds the {name} dialect")


def jetpack_support(context: Context) -> Verdict | None:
    """Whether NVIDIA supports the installed TensorRT on this JetPack."""
    jetson, version = context.machine.jetson, _first(context, _PACKAGES)
    if jetson is None or version is None:
        return None
    if numbers(version) < (11,):
        return ok(f"TensorRT {version} is of the line that JetPack carries")
    if numbers(version) >= (11, 4, 1):
        release = numbers(jetson.jetpack) if jetson.jetpack else None
        if release is None or (7, 2) <= release < (7, 2, 2):
            return unknown(
                f"whether TensorRT {version} is supported here; it needs JetPack 7.2.2",
                why=f"JetPack is {jetson.jetpack or 'not known'}, its point release is not",
            )
        if release >= (7, 2, 2):
            return ok(f"TensorRT {version} is supported on JetPack {jetson.jetpack}")
    return error(
        f"TensorRT {version} is not supported on JetPack {jetson.jetpack or 'here'}",
        why="11.0 to 11.4.0 do not run on JetPack at all, later ones from JetPack 7.2.2",
        fix="pip uninstall -y tensorrt tensorrt-cu13 tensorrt-cu12 && sudo apt install tensorrt "
        "python3-libnvinfer",
    )


def onnxruntime_link(context: Context) -> Verdict | None:
    """Whether onnxruntime-gpu's TensorRT provider is linked to the installed TensorRT."""
    version = _first(context, _PACKAGES)
    ours = context.version("onnxruntime-gpu")
    if version is None or ours is None:
        return None
    library = (folder(context) / _PROVIDER).read_bytes()
    linked = re.search(rb"libnvinfer\.so\.(\d+)", library)
    if linked is None:
        return unknown("the TensorRT that onnxruntime-gpu wants", why=f"{_PROVIDER} does not say")
    major = int(linked[1])
    if numbers(version)[0] == major:
        return ok(f"onnxruntime-gpu {ours} and TensorRT {version} fit")
    return warning(
        f"onnxruntime-gpu {ours} wants TensorRT {major}, installed is {version}",
        why="its TensorRT provider does not load, and sessions fall back without an error",
        fix=f"pip install 'tensorrt-cu13>={major},<{major + 1}', if you use that provider",
    )


def _absent(context: Context, name: str) -> Verdict:
    system = context.version("python3-libnvinfer")  # as dpkg calls it, on a Jetson
    if system:
        return error(
            f"TensorRT {system} is installed for the system's Python, hidden from this environment",
            why=f"the bundle is in the {name} dialect, which TensorRT builds",
            fix=_how_to_see(context),
        )
    return error(
        f"no TensorRT is installed, the bundle is in the {name} dialect",
        why="TensorRT builds the engine from the graph, on this machine",
        fix=_how_to_get(context, name),
    )


def _how_to_see(context: Context) -> str:
    jetpack = (context.machine.jetson and context.machine.jetson.jetpack) or ""
    if jetpack.startswith(("5", "6")):
        return (
            f"upgrade to JetPack 7.2: JetPack {jetpack} has TensorRT for an older Python than "
            "edgelm needs"
        )
    return (
        "make the environment anew, with the system's Python: /usr/bin/python3 -m venv "
        "--system-site-packages ENV"
    )


def _how_to_get(context: Context, name: str) -> str:
    if context.machine.jetson:
        return "sudo apt install tensorrt python3-libnvinfer"
    if _DIALECTS[name].rtx:
        return "pip install tensorrt-rtx"
    return "pip install 'tensorrt-cu13>=10.3,<10.16'"


def _first(context: Context, packages: tuple[str, ...]) -> str | None:
    versions = (context.version(package) for package in packages)
    return next((version for version in versions if version), None)


def _text(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)
