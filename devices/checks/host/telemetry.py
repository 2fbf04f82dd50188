"""Whether ONNX Runtime reports usage to Microsoft.

Official builds do by default: on Windows through the system's event tracing, elsewhere, from 1.29
on, over HTTPS. Outside Windows ORT_DISABLE_TELEMETRY=1 disables it, if it is set before the
library loads (onnxruntime: docs/Privacy.md). edgelm sets it in its own processes unless the
environment already sets it.
"""

import mmap
from pathlib import Path

from edgelm.devices.checks.context import Context
from edgelm.devices.checks.packages.onnxruntimes import folder, installed
from edgelm.devices.checks.verdict import Verdict, ok, unknown, warning

_SWITCH = "ORT_DISABLE_TELEMETRY"
_OFF = {"1", "true", "yes", "on", "y"}
_ENDPOINT = b"events.data.microsoft.com"


def telemetry(context: Context) -> Verdict | None:
    """Whether the installed onnxruntime sends usage data, and whether that is disabled."""
    packages = installed(context)
    if not packages:
        return None
    name = " and ".join(f"{package} {version}" for package, version in packages.items())
    if context.machine.system.startswith("Windows"):
        return unknown(
            f"whether {name} sends usage data",
            why="on Windows it goes to the system's event tracing (ETW), which was not examined",
            fix="onnxruntime.disable_telemetry_events() in programs that use it",
        )
    libraries = sorted((folder(context) / "capi").glob("*onnxruntime*.so*"))
    if not libraries:
        return unknown(
            f"whether {name} sends usage data",
            why="its library was not found",
            fix=f"{_SWITCH}=1 switches it off; reinstall the package if sessions fail too",
        )
    if not any(_contains(library, _ENDPOINT) for library in libraries):
        return ok(f"{name} is built without telemetry")
    value = context.variable(_SWITCH)
    if value is None:
        return ok(
            f"edgelm disables the telemetry of {name}; for other programs: export {_SWITCH}=1"
        )
    if value.strip().lower() in _OFF:
        return ok(f"{_SWITCH}={value} disables the telemetry of {name}")
    return warning(
        f"{_SWITCH} is {value!r}: {name} reports usage to Microsoft",
        why="edgelm disables it only if the environment does not set this variable",
        fix=f"export {_SWITCH}=1",
    )


def _contains(library: Path, text: bytes) -> bool:
    with (
        library.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        return data.find(text) >= 0
