"""Write the fitted coefficients as the built-in table."""

import math
from collections import Counter
from pathlib import Path

import msgspec

from edgelm.devices.planner.coefficients import Entry, Level, Table
from edgelm.devices.planner.cost import Coefficients
from edgelm.devices.published.fit import Fit, Key
from edgelm.devices.published.terms import Observation
from edgelm.devices.published.validation import Ranges
from edgelm.files.staging import replace_file

_HIGHEST_SHARE = 0.98
FAMILIAR = 4  # rows that give a device the narrower range of familiar devices
# Our engines, and the closest published one: both use TensorRT.
_STANDS_FOR = {
    "tensorrt": "tensorrt-edge-llm",
    "tensorrt-10.3": "tensorrt-edge-llm",
    "tensorrt-10.13": "tensorrt-edge-llm",
    "tensorrt-8.5": "tensorrt-edge-llm",
    "tensorrt-rtx": "tensorrt-edge-llm",
}
_HEADER = """\
# Written by `edge-devices fit`; do not edit. Shares of a device's peak rates that engines reach in
# published measurements, and the range that contains 80% of measurements that were left out.
"""


def coefficient_table(
    seen: list[Observation], fitted_on: str, unseen: Ranges, familiar: Ranges
) -> Table:
    """Coefficients for every group of rows, from single devices to all.

    `unseen` are the ranges for devices without rows, `familiar` those for devices with rows.
    """
    fit = Fit(seen)

    def entry(level: Level, engine: str = "", architecture: str = "", device: str = "") -> Entry:
        keys: dict[str, Key] = {"mixture": "dense"}
        keys |= {"engine": engine} if engine else {}
        keys |= {"architecture": architecture} if architecture else {}
        keys |= {"both": (engine, architecture)} if engine and architecture else {}
        keys |= {"device": (engine, device)} if device else {}
        where = " on ".join(filter(None, (engine or "all engines", device or architecture)))
        members = {
            id(item.row)
            for item in seen
            if (not engine or item.row.engine == engine)
            and (not architecture or item.row.hardware.architecture == architecture)
            and (not device or item.row.hardware.family == device)
        }
        rows = len(members)
        held = familiar if level == "device" and rows >= FAMILIAR else unseen
        return Entry(
            level=level,
            engine=engine,
            # A device is looked up by name; its architecture only matters for the fit.
            architecture="" if level == "device" else architecture,
            device=device,
            rows=rows,
            coefficients=_coefficients(fit, keys, held, engine, f"{rows} published rows: {where}"),
        )

    devices = Counter(
        (item.row.engine, item.row.hardware.architecture, item.row.hardware.family) for item in seen
    )
    pairs = dict.fromkeys((engine, architecture) for engine, architecture, _ in sorted(devices))
    engines = dict.fromkeys(engine for engine, _ in pairs)
    architectures = dict.fromkeys(architecture for _, architecture in sorted(pairs, key=str))
    entries = [entry("device", *key) for key in sorted(devices)]
    entries += [entry("architecture", *pair) for pair in pairs]
    entries += [entry("engine", engine) for engine in engines]
    entries += [entry("architecture", "", architecture) for architecture in architectures]
    entries.append(entry("all"))
    return Table(fitted_on=fitted_on, stands_for=_STANDS_FOR, entries=tuple(entries))


def write_table(table: Table, path: Path) -> None:
    """Write the table as TOML, atomically."""
    replace_file(path, (_HEADER + "\n" + _toml(table)).encode())


def _coefficients(
    fit: Fit, keys: dict[str, Key], held: Ranges, engine: str, source: str
) -> Coefficients:
    def band(kind: str) -> tuple[float, float]:
        # Without a known engine only the widest range is safe.
        width = held.width(kind, engine) if engine else held.widest(kind)
        return round(math.exp(-width), 3), round(math.exp(width), 3)

    share = min(_HIGHEST_SHARE, 1 / fit.factor("read", keys))
    layer_us = fit.factor("layers", keys)
    return Coefficients(
        bandwidth=round(share, 4),
        cache_bandwidth=round(share, 4),
        compute=round(1 / fit.factor("matrices", keys), 4),
        attention=round(1 / fit.factor("attention", keys), 4),
        layer_us=round(layer_us, 2),
        unpack=round(fit.factor("unpack", keys), 6),
        prompt_layers=round(fit.factor("prompt_layers", keys) / layer_us, 3),
        recurrent_us=round(fit.factor("recurrence", keys), 3),
        decode_band=band("decode"),
        prefill_band=band("prefill"),
        source=source,
    )


def _toml(table: Table) -> str:
    lines = [f"fitted_on = {_value(table.fitted_on)}", "", "[stands_for]"]
    lines += [f"{_value(ours)} = {_value(theirs)}" for ours, theirs in table.stands_for.items()]
    for entry in table.entries:
        fields = msgspec.to_builtins(entry)
        numbers = fields.pop("coefficients")
        lines += ["", "[[entries]]"]
        lines += [f"{name} = {_value(value)}" for name, value in fields.items() if value != ""]
        lines += ["[entries.coefficients]"]
        lines += [f"{name} = {_value(value)}" for name, value in numbers.items()]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    return msgspec.json.encode(value).decode()
