"""Device profiles as text: a table of all, and one with the source of every number."""

from collections.abc import Sequence

from edgelm.devices.profile import Profile
from edgelm.devices.profile_tables import Figure, PowerMode

_MARKS = {"given": "", "measured": ", measured", "derived": ", derived"}
_MAX_ALIASES = 3


def device_table(profiles: Sequence[Profile]) -> str:
    """One line for each device: target, name, memory, bandwidth, engine and other names."""
    rows = [("target", "device", "memory", "bandwidth", "engine", "also called")]
    for one in profiles:
        memory = f"{one.memory.bytes.value / 2**30:.0f} GB" if one.memory.bytes else "-"
        rate = f"{one.mode().bandwidth_gb_s.value:,.0f} GB/s"
        engine, aliases = one.engines[0].name, ", ".join(one.aliases[:_MAX_ALIASES])
        if len(one.aliases) > _MAX_ALIASES:  # `show` prints them all
            aliases += f", +{len(one.aliases) - _MAX_ALIASES}"
        rows.append((one.name, one.title, memory, rate, engine, aliases))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    sides = "<<>><<"  # numbers are aligned right
    lines = [
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def describe(profile: Profile) -> str:
    """One profile; derived, assumed and unverified figures are marked."""
    lines = [f"{profile.name}: {profile.title}"]
    if profile.aliases:
        lines.append(f"also called {', '.join(profile.aliases)}")
    compute = f", SM{profile.sm}" if profile.sm else ""
    lines += [f"{profile.form}, {profile.architecture}{compute}", ""]
    memory = profile.memory
    size = _figure(memory.bytes, 2**-30, "GiB") if memory.bytes else "that of this machine"
    lines += [
        _row("memory", f"{memory.kind}, {size}"),
        _row("  reserved", _figure(memory.reserved_bytes, 2**-30, "GiB")),
        _row("  available", f"{profile.budget_bytes / 2**30:.1f} GiB"),
    ]
    for mode in profile.power_modes:
        lines += _mode(mode, default=mode.name == profile.power_mode)
    for engine in profile.engines:
        title = f"{engine.name} {engine.version}".strip()
        needs = f"; needs {engine.requires}" if engine.requires else ""
        lines.append(_row("engine", f"{title}, {engine.dialect} dialect{needs}"))
        lines.append(_row("  precisions", ", ".join(engine.precisions)))
        lines.append(_row("  cache", ", ".join(engine.kv)))
        lines.append(_row("  runtime", _figure(engine.runtime_bytes, 1e-9, "GB")))
    if profile.l2_mb:
        lines.append(_row("L2 cache", _figure(profile.l2_mb, 1, "MB")))
    for name, figure in profile.measured_tflops.items():
        lines.append(_row(f"measured {name}", _figure(figure, 1, "T operations/s")))
    if profile.notes:
        lines += ["", profile.notes]
    lines += ["", "Sources:"]
    lines += [f"  [{key}] {text}" for key, text in profile.sources.items()]
    return "\n".join(lines)


def _mode(mode: PowerMode, *, default: bool) -> list[str]:
    lines = [_row("power mode", mode.name + (" (default for plans)" if default else ""))]
    lines.append(_row("  bandwidth", _figure(mode.bandwidth_gb_s, 1, "GB/s")))
    if mode.measured_gb_s:
        lines.append(_row("    measured", _figure(mode.measured_gb_s, 1, "GB/s")))
    for name, figure in mode.dense_tflops.items():
        lines.append(_row(f"  dense {name}", _figure(figure, 1, "T operations/s")))
    if mode.clock_ghz:
        lines.append(_row("  clock", _figure(mode.clock_ghz, 1, "GHz")))
    if mode.sm_count:
        lines.append(_row("  SMs", _figure(mode.sm_count, 1, "")))
    if mode.watts:
        lines.append(_row("  power cap", _figure(mode.watts, 1, "W")))
    return lines


def _figure(figure: Figure, scale: float, unit: str) -> str:
    mark = _MARKS.get(figure.status, f", {figure.status.upper()}")
    return f"{figure.value * scale:.4g} {unit}".rstrip() + f"  [{figure.source}{mark}]"


def _row(name: str, value: str) -> str:
    return f"{name:<14} {value}"
