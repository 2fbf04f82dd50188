"""Write the fitted coefficients as the built-in table."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgelm.devices.planner.cost_model.coefficients import Entry, Level, Table
from edgelm.devices.planner.cost_model.cost import Coefficients
from edgelm.devices.published.batches import PRIORS as BATCH_PRIORS
from edgelm.devices.published.batches import fit_batches, shared_coefficients
from edgelm.devices.published.fit import Fit, Key
from edgelm.devices.published.rows import Row
from edgelm.devices.published.terms import Observation
from edgelm.devices.published.validation import Ranges
from edgelm.files.staging import replace_file

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
    seen: list[Observation],
    fitted_on: str,
    unseen: Ranges,
    familiar: Ranges,
    batched: Sequence[Row] = (),
) -> Table:
    """Coefficients for every group of rows, from single devices to all.

    `unseen` are the ranges for devices without rows, `familiar` those for devices with rows.
    `batched` are rows of several sequences.
    """
    unseen = unseen.at_least(familiar)
    fit = Fit(seen)
    several = fit_batches(batched, fit) if batched else None

    def entry(
        level: Level, engine: str = "", architecture: str = "", chip: str = "", device: str = ""
    ) -> Entry:
        keys: dict[str, Key] = {"mixture": "dense"}
        keys |= {"engine": engine} if engine else {}
        keys |= {"architecture": architecture} if architecture else {}
        keys |= {"both": (engine, architecture)} if engine and architecture else {}
        keys |= {"chip": (engine, chip)} if chip else {}
        keys |= {"device": (engine, device)} if device else {}
        place = device or chip or architecture
        where = " on ".join(filter(None, (engine or "all engines", place)))
        members = {
            id(item.row)
            for item in seen
            if (not engine or item.row.engine == engine)
            and (not architecture or item.row.hardware.architecture == architecture)
            and (not chip or item.row.hardware.chip == chip)
            and (not device or item.row.hardware.family == device)
        }
        rows = len(members)
        held = familiar if level == "device" and rows >= FAMILIAR else unseen
        return Entry(
            level=level,
            engine=engine,
            # A device is looked up by name; its architecture and chip only matter for the fit.
            architecture="" if level in ("device", "chip") else architecture,
            chip="" if level == "device" else chip,
            device=device,
            rows=rows,
            coefficients=_coefficients(
                fit, several, keys, held, engine, f"{rows} published rows: {where}"
            ),
        )

    devices = Counter(
        (item.row.engine, hardware.architecture, hardware.chip, hardware.family)
        for item in seen
        if (hardware := item.row.hardware)
    )
    chips = dict.fromkeys(key[:3] for key in sorted(devices) if key[2])
    pairs = dict.fromkeys(key[:2] for key in sorted(devices))
    engines = dict.fromkeys(engine for engine, _ in pairs)
    architectures = dict.fromkeys(architecture for _, architecture in sorted(pairs, key=str))
    entries = [entry("device", *key) for key in sorted(devices)]
    entries += [entry("chip", *key) for key in chips]
    entries += [entry("architecture", *pair) for pair in pairs]
    entries += [entry("engine", engine) for engine in engines]
    entries += [entry("architecture", "", architecture) for architecture in architectures]
    entries.append(entry("all"))
    return Table(fitted_on=fitted_on, stands_for=_STANDS_FOR, entries=tuple(entries))


def write_table(table: Table, path: Path) -> None:
    """Write the table as TOML, atomically."""
    replace_file(path, (_HEADER + "\n" + _toml(table)).encode())


def _coefficients(
    fit: Fit, several: Fit | None, keys: dict[str, Key], held: Ranges, engine: str, source: str
) -> Coefficients:
    def band(kind: str) -> tuple[float, float]:
        # Without a known engine only the widest range is safe.
        width = held.width(kind, engine) if engine else held.widest(kind)
        return round(math.exp(-width), 3), round(math.exp(width), 3)

    one = shared_coefficients(fit, keys)
    more = several.factors(keys) if several else dict.fromkeys(BATCH_PRIORS, 0.0)
    return Coefficients(
        bandwidth=round(one.bandwidth, 4),
        cache_bandwidth=round(one.cache_bandwidth, 4),
        compute=round(one.compute, 4),
        attention=round(one.attention, 4),
        layer_us=round(one.layer_us, 2),
        unpack=round(one.unpack, 6),
        prompt_layers=round(one.prompt_layers, 3),
        recurrent_us=round(one.recurrent_us, 3),
        batch_layer_us=round(more["batch_layers"], 3),
        batch_vector=round(more["batch_vector"], 4),
        batch_matrix=round(more["batch_matrix"], 4),
        decode_band=band("decode"),
        batch_band=band("batch"),
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
