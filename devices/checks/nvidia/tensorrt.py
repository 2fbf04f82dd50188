"""Whether the installed TensorRT fits the bundle, JetPack and ONNX Runtime."""

import re

from edgelm.devices.checks.bundle_target import runs_here
from edgelm.devices.checks.context import Context
from edgelm.devices.checks.numbers import numbers
from edgelm.devices.checks.packages.onnxruntimes import folder
from edgelm.devices.checks.verdict import Verdict, error, ok, unknown, warning
from edgelm.devices.detection.jetpack import jetpack_of
from edgelm.devices.detection.modules import unsupported
from edgelm.devices.tensorrt_versions import RTX, TENSORRT, oldest_with

_PACKAGES = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
_RTX_PACKAGES = ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12")
_PROVIDER = "capi/libonnxruntime_providers_tensorrt.so"
_OLDEST_JETPACK = (6, 1)  # the first with TensorRT 10
_ENVIRONMENT = "/usr/bin/python3 -m venv --system-site-packages ENV"
_NO_TENSORRT = (
    "install JetPack 6.1 or newer if the board can have it (Orin, Thor): this JetPack's TensorRT "
    "builds none of edgelm's graphs; or run bundles exported with --target cpu, with Python 3.10 "
    "or newer"
)
_REBUILD = "export it again for a target with the {} dialect (edge-export --list-targets)"


def dialect(context: Context) -> Verdict | None:
    """Whether the bundle's engine, TensorRT or TensorRT-RTX, is installed and builds its graph."""
    manifest = context.manifest
    if manifest is None or not manifest.compiles or not runs_here(context):
        return None
    if manifest.engine.name == RTX:
        return _rtx(context)
    name = manifest.graph.dialect
    oldest, newer = oldest_with(TENSORRT, name), oldest_with(TENSORRT, "standard")
    version = _first(context, _PACKAGES)
    if version is None:
        return _absent(context, name)
    found = f"TensorRT {version}, the bundle's {name} dialect needs "
    if numbers(version) < oldest:
        return error(
            f"{found}{_text(oldest)} or newer",
            why="it does not know the graph's operators",
            fix=_REBUILD.format("decomposed" if name == "standard" else "standard"),
        )
    if name == "decomposed" and numbers(version) >= newer:
        return warning(
            f"{found}a version before {_text(newer)}",
            why="its graph uses basic operators for older versions; newer ones are faster",
            fix=_REBUILD.format("standard"),
        )
    return ok(f"TensorRT {version} builds the {name} dialect")


def jetpack_support(context: Context) -> Verdict | None:
    """Whether NVIDIA supports the installed TensorRT on this JetPack."""
    jetson, version = context.machine.jetson, _first(context, _PACKAGES)
    if jetson is None or version is None:
        return None
    if numbers(version) < (11,):
        return ok(f"TensorRT {version} is of a release series that JetPack includes")
    if numbers(version) >= (11, 4, 1):
        release = numbers(jetson.jetpack) if jetson.jetpack else None
        if release is None or (7, 2) <= release < (7, 2, 2):
            return unknown(
                f"whether TensorRT {version} is supported here; it needs JetPack 7.2.2",
                why=f"JetPack is {jetson.jetpack or 'not known'}; its point release is unknown",
                fix="`apt show nvidia-jetpack` prints the release; before 7.2.2: sudo apt install "
                "tensorrt python3-libnvinfer",
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
        return unknown(
            "which TensorRT onnxruntime-gpu needs",
            why=f"{_PROVIDER} does not name its library",
            fix="nothing to do unless a program of yours uses that provider",
        )
    major = int(linked[1])
    if numbers(version)[0] == major:
        return ok(f"onnxruntime-gpu {ours} and TensorRT {version} are compatible")
    return warning(
        f"onnxruntime-gpu {ours} needs TensorRT {major}, but {version} is installed",
        why="its TensorRT provider does not load, and sessions fall back without an error",
        fix=f"pip install 'tensorrt-cu13>={major},<{major + 1}', if you use that provider",
    )


def _rtx(context: Context) -> Verdict:
    version = _first(context, _RTX_PACKAGES)
    if version:
        return ok(f"TensorRT-RTX {version} runs the bundle's engine")
    return error(
        "TensorRT-RTX is not installed",
        why="the bundle's engine is compiled and run with it",
        fix="pip install 'edgelm[rtx]'",
    )


def _absent(context: Context, name: str) -> Verdict:
    bindings = context.version("python3-libnvinfer")  # as dpkg calls it, on a Jetson
    library = _library(context)
    why = "TensorRT compiles the bundle's graph into an engine on this machine"
    if bindings:
        what = (
            f"TensorRT {bindings} is installed for the system's Python, but not visible in this "
            "environment"
        )
        return error(what, why=why, fix=_how_to_see(context))
    if library:
        what = f"TensorRT {library} is installed without its Python bindings"
        return error(what, why=why, fix=_how_to_bind(context))
    return error(
        f"TensorRT is not installed; the bundle's {name} dialect needs it",
        why=why,
        fix=_how_to_get(context, name),
    )


def _library(context: Context) -> str | None:
    """The version of Debian's libnvinfer, whatever its major number."""
    packages = context.machine.packages.items()
    return next((version for name, version in packages if name.startswith("libnvinfer")), None)


def _how_to_see(context: Context) -> str:
    if _is_too_old(context):
        return _NO_TENSORRT
    return f"create the environment again with the system's Python: {_ENVIRONMENT}"


def _how_to_bind(context: Context) -> str:
    if _is_too_old(context):
        return _NO_TENSORRT
    return (
        "sudo apt install python3-libnvinfer, and create the environment with the system's Python, "
        f"which they are for: {_ENVIRONMENT}"
    )


def _how_to_get(context: Context, name: str) -> str:
    if context.machine.jetson:
        if _is_too_old(context):
            return _NO_TENSORRT
        return (
            "sudo apt install tensorrt python3-libnvinfer, and create the environment with the "
            f"system's Python: {_ENVIRONMENT}"
        )
    oldest, newer = oldest_with(TENSORRT, name), oldest_with(TENSORRT, "standard")
    before = f",<{_text(newer)}" if name == "decomposed" else ""
    return f"pip install 'tensorrt-cu13>={_text(oldest)}{before}'"


def _is_too_old(context: Context) -> bool:
    """Whether JetPack's TensorRT builds none of the graphs, and JetPack's Python runs no edgelm."""
    jetson = context.machine.jetson
    if jetson is None:
        return False
    release = jetpack_of(jetson.l4t) if jetson.l4t else None
    name = jetson.jetpack or (release.jetpack if release else "")
    return unsupported(jetson) is not None or (bool(name) and numbers(name) < _OLDEST_JETPACK)


def _first(context: Context, packages: tuple[str, ...]) -> str | None:
    versions = (context.version(package) for package in packages)
    return next((version for version in versions if version), None)


def _text(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)
