"""Identify a Jetson, without root if possible.

The device tree names the board and the SoC; nv_boot_control.conf the module, which a carrier
board's device tree may get wrong; nv_tegra_release the release of Jetson Linux; nvpmodel the power
mode; devfreq the clocks. A container hides the device tree, but not the kernel's description of
the SoC.
"""

import os
import re
from collections.abc import Sequence

import msgspec

from edgelm.devices.detection.jetpack import JetPack, jetpack_of
from edgelm.devices.detection.machine import DetectedGpu, Jetson, Unread
from edgelm.devices.detection.modules import BOARDS, SOCS, module_of
from edgelm.devices.detection.probes import Probes, reason

_MODEL = "/proc/device-tree/model"
_COMPATIBLE = "/proc/device-tree/compatible"
_BOARD_IDS = "/proc/device-tree/nvidia,boardids"
_BOOT_CONTROL = "/etc/nv_boot_control.conf"
_RELEASE = "/etc/nv_tegra_release"
_POWER_MODES = "/etc/nvpmodel.conf"
_POWER_STATUS = "/var/lib/nvpmodel/status"
_SOC0 = "/sys/devices/soc0"
_DEVFREQ = "/sys/class/devfreq"
# JetPack 5, JetPack 5 on Xavier, Orin since JetPack 6, Thor, TX2, Nano.
GPU_CLOCKS = (
    *("17000000.ga10b", "17000000.gv11b", "17000000.gpu", "gpu-gpc-0"),
    *("17000000.gp10b", "57000000.gpu"),
)
# Newer kernels show it to all users, older ones only to root.
_MEMORY_CLOCKS = (f"{_DEVFREQ}/bwmgr/cur_freq", "/sys/kernel/debug/bpmp/debug/clk/emc/rate")


def read_jetson(probes: Probes) -> tuple[Jetson | None, list[Unread]]:
    """The module, its software and its state; None if this is not a Jetson."""
    unread: list[Unread] = []
    soc = _read_soc(probes, unread)
    model = _read_model(probes, unread)
    if soc is None and "Jetson" not in model:
        return None, []
    l4t = _read_l4t(probes, unread)
    release = jetpack_of(l4t) if l4t else None
    if l4t and (release is None or release.nearest):
        unread.append(Unread("JetPack", _RELEASE, _unlisted(l4t, release)))
    jetson = Jetson(
        model=model or "NVIDIA Jetson",
        part=_read_part(probes, unread),
        soc=soc,
        l4t=l4t,
        jetpack=release.jetpack if release else None,
    )
    return _with_clocks(probes, _with_power_mode(probes, jetson, unread), unread), unread


def integrated_gpu(
    jetson: Jetson, memory_bytes: int, listed: Sequence[DetectedGpu]
) -> list[DetectedGpu]:
    """All GPUs, the module's own first, with figures that NVML does not report filled in.

    NVML of a Jetson reports few figures, and before JetPack 6 it does not exist.
    """
    soc = SOCS.get(jetson.soc or "")
    module = module_of(jetson.part)
    own = next((gpu for gpu in listed if gpu.memory_kind == "shared"), None)
    others = [gpu for gpu in listed if gpu is not own]
    base = own or DetectedGpu(name=soc.gpu if soc else "GPU of the Jetson")
    release = jetpack_of(jetson.l4t) if jetson.l4t else None
    completed = msgspec.structs.replace(
        base,
        sm=soc.sm if soc else base.sm,
        sm_count=(module.sm_counts.get(jetson.power_mode or "") if module else None)
        or base.sm_count,
        memory_bytes=memory_bytes,
        memory_kind="shared",
        cuda=base.cuda or (release.cuda if release else None),
        max_clock_mhz=jetson.gpu_max_clock_mhz or base.max_clock_mhz,
    )
    return [completed, *others]


def _unlisted(l4t: str, release: JetPack | None) -> str:
    if release is None:
        return f"Jetson Linux {l4t} belongs to no known JetPack; `apt show nvidia-jetpack` names it"
    return f"Jetson Linux {l4t} is not in the table; taken for JetPack {release.jetpack}"


def _read_soc(probes: Probes, unread: list[Unread]) -> str | None:
    missing: list[Unread] = []
    text = probes.read("SoC", _COMPATIBLE, missing)
    if match := re.search(r"nvidia,(tegra\d+)", text):
        return match[1]
    number = probes.read("SoC", f"{_SOC0}/soc_id", [])
    if probes.read("SoC", f"{_SOC0}/family", []) == "Tegra":
        for name, soc in SOCS.items():
            if soc.number == number:
                return name
    unread += missing or [_garbled("SoC", _COMPATIBLE, text)]
    return None


def _read_model(probes: Probes, unread: list[Unread]) -> str:
    missing: list[Unread] = []
    model = probes.read("model", _MODEL, missing) or probes.read("model", f"{_SOC0}/machine", [])
    if not model:
        unread += missing or [Unread("model", _MODEL, "empty")]
    return model


def _read_part(probes: Probes, unread: list[Unread]) -> str | None:
    missing: list[Unread] = []
    spec = probes.read("module", _BOOT_CONTROL, missing)
    # Board, fab, SKU: "TNSPEC 3767-300-0005-R.2-1-1-jetson-orin-nano-devkit-super-".
    if match := re.search(r"^TNSPEC\s+(\d{4})-(?:\w{3}-)?(\d{4})\b", spec, re.M):
        return f"p{match[1]}-{match[2]}"
    if match := re.match(r"(\d{4})[:-](\d{4})", probes.read("module", _BOARD_IDS, [])):
        return f"p{match[1]}-{match[2]}"
    # Carrier and module: "nvidia,p3768-0000+p3767-0005-super".
    for match in re.finditer(r"(p\d{4})-\d{4}", probes.read("module", _COMPATIBLE, [])):
        if match[1] in BOARDS:
            return match[0]
    unread += missing or [_garbled("module", _BOOT_CONTROL, spec)]
    return None


def _read_l4t(probes: Probes, unread: list[Unread]) -> str | None:
    missing: list[Unread] = []
    text = probes.read("Jetson Linux", _RELEASE, missing)
    # The comma after the revision shows that it is complete.
    if match := re.search(r"R(\d+) \(release\), REVISION: (\d[\d.]*),", text):
        return f"{match[1]}.{match[2]}"
    try:
        package = probes.run(["dpkg-query", "-W", "-f=${Version}", "nvidia-l4t-core"])
    except OSError:
        package = ""
    if match := re.match(r"\d[\d.]*(?=-)", package):
        return match[0]
    unread += missing or [_garbled("Jetson Linux", _RELEASE, text)]
    return None


def _with_power_mode(probes: Probes, jetson: Jetson, unread: list[Unread]) -> Jetson:
    missing: list[Unread] = []
    conf = probes.read("power mode", _POWER_MODES, missing)
    pairs = re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", conf)
    names = {int(number): name for number, name in pairs}
    status = probes.read("power mode", _POWER_STATUS, missing)
    match = re.search(r"pmode:(\d+)", status)
    number = int(match[1]) if match else None
    name = None if number is None else names.get(number)
    if name is None:
        number, name = _ask_nvpmodel(probes) or (number, None)
    if number is None:
        unread += missing or [_garbled("power mode", _POWER_STATUS, status)]
    elif name is None:
        unread += missing or [Unread("power mode", _POWER_MODES, f"does not name mode {number}")]
    return msgspec.structs.replace(
        jetson, power_mode=name, power_mode_id=number, power_modes=tuple(names.values())
    )


def _ask_nvpmodel(probes: Probes) -> tuple[int, str] | None:
    try:
        answer = probes.run(["nvpmodel", "-q"])
    except OSError:
        return None
    match = re.search(r"NV Power Mode: (\S+)\s+(\d+)", answer)
    return (int(match[2]), match[1]) if match else None


def _with_clocks(probes: Probes, jetson: Jetson, unread: list[Unread]) -> Jetson:
    folders = (f"{_DEVFREQ}/{name}" for name in GPU_CLOCKS)
    gpu = next((folder for folder in folders if os.path.isdir(probes.path(folder))), None)
    current = highest = None
    if gpu:
        current = _mhz(probes, "GPU clock", [f"{gpu}/cur_freq"], unread)
        highest = _mhz(probes, "highest GPU clock", [f"{gpu}/max_freq"], unread)
    else:
        unread.append(Unread("GPU clock", _DEVFREQ, "no GPU in it"))
    return msgspec.structs.replace(
        jetson,
        gpu_clock_mhz=current,
        gpu_max_clock_mhz=highest,
        memory_clock_mhz=_mhz(probes, "memory clock", _MEMORY_CLOCKS, unread),
    )


def _mhz(probes: Probes, what: str, paths: Sequence[str], unread: list[Unread]) -> float | None:
    """The frequency in the first readable file, which holds it in Hz."""
    failed: list[Unread] = []
    for path in paths:
        try:
            return int(probes.text(path)) / 1e6
        except (OSError, ValueError) as error:
            failed.append(Unread(what, path, reason(error)))
    unread += failed[-1:]  # one entry, for the file that older systems also have
    return None


def _garbled(what: str, path: str, text: str) -> Unread:
    return Unread(what, path, f"cannot be parsed: {text[:40]!r}")
