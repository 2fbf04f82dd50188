"""Recorded machines: `recorded/<name>.toml`, laid out as files under a folder.

A recording is put together from NVIDIA's documents and what owners posted, not dumped from one
machine. It is one file because device trees hold NULs and PCI addresses colons, which not every
tool and file system takes. Those in `recorded/public` are real machines, rebuilt from public
dumps (some counters and package lists composed); `truth.json` says what each of them is.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from edgelm.devices.detection.probes import Probes

_FOLDER = Path(__file__).with_name("recorded")
_PUBLIC = _FOLDER / "public"


class Processors(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Equal hardware threads in a row; `text` is the rest of their block of cpuinfo."""

    count: int
    text: str
    threads_per_core: int = 1


class RecordedGpu(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What NVML answers; None stands for its Not Supported."""

    name: str
    capability: tuple[int, int]
    cores: int | None = None
    memory_bytes: int | None = None
    power_limit_mw: int | None = None
    max_clock_mhz: int | None = None


class RecordedNvml(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """NVML of the machine."""

    driver: str
    cuda: int
    gpus: list[RecordedGpu]


class Recording(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file. `denied` are files that only root may read; `commands` by their words."""

    system: str
    threads: int
    processors: list[Processors]
    files: dict[str, str]
    denied: list[str] = []
    commands: dict[str, str] = {}
    packages: dict[str, str] = {}
    nvml: RecordedNvml | None = None


def names() -> list[str]:
    """Every recorded machine."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


class Truth(msgspec.Struct, frozen=True):
    """What a machine is. `nvml_quirk` is what its NVML does instead of an answer."""

    truth: dict[str, Any]
    nvml_quirk: str | None = None


def truths() -> dict[str, Truth]:
    """Every machine of a public dump, and what it is."""
    return msgspec.json.decode((_PUBLIC / "truth.json").read_bytes(), type=dict[str, Truth])


def recording(name: str) -> Recording:
    """One recorded machine, as it is in its file."""
    public = _PUBLIC / f"{name}.json"
    if public.is_file():
        return msgspec.json.decode(public.read_bytes(), type=Recording)
    return msgspec.toml.decode((_FOLDER / f"{name}.toml").read_bytes(), type=Recording)


@dataclass(frozen=True)
class RecordedProbes(Probes):
    """Probes that may read everything but `denied`: tests can run as root."""

    denied: frozenset[str] = frozenset()

    def text(self, path: str) -> str:
        if path in self.denied:
            raise PermissionError(13, "Permission denied", path)
        return super().text(path)


def recorded(
    name: str,
    folder: Path,
    *,
    files: Mapping[str, str | None] | None = None,
    denied: Collection[str] = (),
    commands: Mapping[str, str] | None = None,
    nvml: Any = None,
) -> RecordedProbes:
    """Probes of a recorded machine, laid out in an empty folder.

    `files` replaces some, or with None takes them away; `commands` replaces all there are;
    `nvml` is a module that stands for NVML.
    """
    machine = recording(name)
    contents: dict[str, str | None] = {"/proc/cpuinfo": cpuinfo(machine.processors)}
    for path, text in (contents | machine.files | dict(files or {})).items():
        if text is not None:
            target = folder / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
    known = machine.commands if commands is None else commands
    module = nvml or (nvml_module(machine.nvml, **_quirks(name)) if machine.nvml else None)
    return RecordedProbes(
        root=folder,
        run=lambda command: _run(known, command),
        pynvml=lambda: _import(module),
        version=machine.packages.get,
        system=lambda: machine.system,
        threads=lambda: machine.threads,
        denied=frozenset(machine.denied) | frozenset(denied),
    )


def cpuinfo(processors: Sequence[Processors]) -> str:
    """The text of /proc/cpuinfo."""
    blocks: list[str] = []
    for kind in processors:
        for index in range(kind.count):
            text = kind.text.strip().replace("{core}", str(index // kind.threads_per_core))
            blocks.append(f"processor\t: {len(blocks)}\n{text}\n")
    return "\n".join(blocks)


def _quirks(name: str) -> dict[str, Any]:
    """The functions that fail on a machine of a public dump."""
    one = truths().get(name)
    match one.nvml_quirk.split(": ") if one and one.nvml_quirk else ():
        case ("init", message):
            return {"nvmlInit": failing(message)}
        case ("memory", _):
            return {"nvmlDeviceGetMemoryInfo": failing("Insufficient Permissions")}
    return {}


class NvmlError(Exception):
    """Stands for pynvml.NVMLError."""


class NvmlNotSupported(NvmlError):
    """Stands for pynvml.NVMLError_NotSupported."""

    def __str__(self) -> str:
        return "Not Supported"


def nvml_module(machine: RecordedNvml, **functions: Any) -> SimpleNamespace:
    """A module like pynvml; `functions` replaces some of its functions."""

    def of(field: str) -> Any:
        def answer(handle: int, *_: Any) -> Any:
            value = getattr(machine.gpus[handle], field)
            if value is None:
                raise NvmlNotSupported
            return SimpleNamespace(total=value) if field == "memory_bytes" else value

        return answer

    parts: dict[str, Any] = {
        "NVMLError": NvmlError,
        "NVMLError_NotSupported": NvmlNotSupported,
        "NVML_CLOCK_SM": 1,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: machine.driver,
        "nvmlSystemGetCudaDriverVersion_v2": lambda: machine.cuda,
        "nvmlDeviceGetCount": lambda: len(machine.gpus),
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": of("name"),
        "nvmlDeviceGetCudaComputeCapability": of("capability"),
        "nvmlDeviceGetNumGpuCores": of("cores"),
        "nvmlDeviceGetMemoryInfo": of("memory_bytes"),
        "nvmlDeviceGetEnforcedPowerLimit": of("power_limit_mw"),
        "nvmlDeviceGetMaxClockInfo": of("max_clock_mhz"),
    }
    return SimpleNamespace(**parts | functions)


def failing(message: str) -> Any:
    """A function of NVML that raises."""

    def fail(*_: Any) -> Any:
        raise NvmlError(message)

    return fail


def _run(known: Mapping[str, str], command: Sequence[str]) -> str:
    try:
        return known[" ".join(command)]
    except KeyError:
        raise FileNotFoundError(2, "No such file or directory", command[0]) from None


def _import(module: Any) -> Any:
    if module is None:
        raise ModuleNotFoundError("No module named 'pynvml'", name="pynvml")
    return module
