"""Requests to the planner and its predictions: memory, speed and energy of a model on a device."""

from typing import Literal

import msgspec

from edgelm.cli import format_bytes
from edgelm.quantize.precision import KvType
from edgelm.spec.decoder import DecoderSpec

SOURCE = "source"  # the precision of a quantized checkpoint, kept
Speed = Literal["fast enough", "probably fast enough", "probably too slow", "too slow"]


class Estimate(msgspec.Struct, frozen=True):
    """A predicted value, and a range that contains the true value in about 80% of cases."""

    value: float
    low: float
    high: float

    def per_second(self, count: float = 1.0) -> "Estimate":
        """The rate of `count` items per this many milliseconds."""
        return Estimate(*(1e3 * count / ms for ms in (self.value, self.high, self.low)))


class SourceWeights(msgspec.Struct, frozen=True):
    """The precision that an engine gets if the levels of a quantized checkpoint are kept.

    `kind` is the precision of most matrices; `linear_bits` and `head_bits` are bits per weight of
    the layers and of the head.
    """

    kind: str
    linear_bits: float
    head_bits: float
    notes: tuple[str, ...] = ()


class PlanRequest(msgspec.Struct, frozen=True):
    """The deployment to plan.

    `precision` is a name of edgelm.quantize.precision, `auto`, or `source` for the levels of a
    quantized checkpoint, which the field `source` then describes. `engine` is by default the first
    one of the profile, and `power_mode` the profile's default. `prompt` is the length in tokens for
    which the time to the first token is predicted, and the depth at which decoding is timed.
    """

    precision: str = "auto"
    kv: KvType | None = None
    context: int | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    engine: str | None = None
    power_mode: str | None = None
    prompt: int = 512
    batch: int = 1
    max_memory_bytes: int | None = None
    min_tokens_per_second: float | None = None
    source: SourceWeights | None = None
    draft_head: bool = False
    """With the checkpoint's draft head (edgelm.spec.draft_head)."""
    assistant: DecoderSpec | None = None
    """With this assistant (edgelm.spec.assistant), which names the layers that it reads."""

    @property
    def kind(self) -> str:
        """The precision of most matrices, or `auto`."""
        return self.precision if self.source is None else self.source.kind


class Plan(msgspec.Struct, frozen=True):
    """The chosen configuration and its predicted costs; every figure is an estimate.

    `prefill_ms` is the time until every one of `batch` prompts of `prompt` tokens has its first
    token, `decode_ms` the time of one step after it, `joules_per_token` the energy of a token if
    the power is known. `binds` is the bottleneck of decoding: memory bandwidth or per-layer
    overhead. `packed_bytes` is how much more memory the weights take than their file does.

    `build_bytes` is the peak memory to compile the engine, in `build_segments` segments, on a
    machine that has `build_room_bytes` for it; they are 0, 1 and 0 if nothing is compiled.
    `export_bytes` is the peak of the export, on the machine that runs it. `unsupported` says why
    edgelm cannot run on the device. `missing` lists the requirements that are not met; each line
    of `advice` is a change that would be sufficient. `basis` is the source of the predicted speeds;
    `notes` are further warnings.
    """

    target: str
    engine: str
    dialect: str
    power_mode: str
    precision: str
    kv: KvType
    context: int
    prompt: int
    batch: int
    parameters: int
    weight_bytes: int
    packed_bytes: int
    kv_bytes: int
    workspace_bytes: int
    runtime_bytes: int
    build_bytes: int
    budget_bytes: int
    prefill_ms: Estimate
    decode_ms: Estimate
    joules_per_token: Estimate | None
    binds: str
    fits: bool
    fast_enough: bool
    basis: str
    export_bytes: int = 0
    build_segments: int = 1
    build_room_bytes: int = 0
    required_tokens_per_second: float | None = None
    unsupported: str = ""
    missing: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    embeds: bool = False
    """An embedding model: `prefill_ms` is the time of one text, and nothing is decoded."""
    draft_bytes: int = 0
    """What a draft head or assistant adds: weights, copies of them, cache and workspace."""

    @property
    def total_bytes(self) -> int:
        """Peak memory while it runs."""
        weights = self.weight_bytes + self.packed_bytes
        own = weights + self.kv_bytes + self.workspace_bytes + self.runtime_bytes
        return own + self.draft_bytes

    @property
    def tokens_per_second(self) -> Estimate:
        """Decode rate, summed over all sequences."""
        return self.decode_ms.per_second(self.batch)

    @property
    def builds(self) -> bool:
        """Whether the engine can be compiled where it must be, without swap."""
        return self.build_bytes <= self.build_room_bytes or not self.build_room_bytes

    @property
    def works(self) -> bool:
        """Whether it can be compiled, fits in memory and is as fast as requested."""
        return self.fits and self.builds and self.fast_enough and not self.unsupported

    @property
    def speed(self) -> Speed:
        """How the required speed compares with the predicted range."""
        required, rate = self.required_tokens_per_second, self.tokens_per_second
        if required is None:
            return "fast enough" if self.fast_enough else "too slow"
        if rate.low >= required:
            return "fast enough"
        if rate.value >= required:
            return "probably fast enough"
        return "probably too slow" if rate.high >= required else "too slow"

    @property
    def verdict(self) -> str:
        """One phrase, such as `fits`, `does not fit`, `cannot be built there`, `too slow`."""
        if self.unsupported:
            return "does not run there"
        if not self.fits:
            return "does not fit"
        if not self.builds:
            return "cannot be built there"
        if self.speed == "fast enough":
            return "fits"
        return f"fits, {self.speed}" if self.fast_enough else self.speed

    @property
    def _bound(self) -> str:
        # Over the budget nothing decodes: `memory` would read as its bandwidth.
        return f", bound by {self.binds}" if self.fits else ", if it fit"

    @property
    def _energy(self) -> str:
        if self.joules_per_token is None:
            return f"not known: no power limit is published for {self.power_mode}"
        return f"{range_text(self.joules_per_token)} J per token"

    def table(self) -> str:
        """The plan as text, one figure per line."""
        rows = [
            ("target", f"{self.target}, {self.power_mode} ({self.engine}, {self.dialect} dialect)"),
            ("precision", f"{self.precision}, {self.kv} cache, context {self.context:,}"),
            ("parameters", f"{self.parameters / 1e6:,.1f} M"),
            ("weights", format_bytes(self.weight_bytes)),
            ("packing", format_bytes(self.packed_bytes)),
            ("KV cache", format_bytes(self.kv_bytes)),
            ("workspace", format_bytes(self.workspace_bytes)),
            ("runtime", format_bytes(self.runtime_bytes)),
            ("draft head", format_bytes(self.draft_bytes)),
            ("total", f"{format_bytes(self.total_bytes)} of {format_bytes(self.budget_bytes)}"),
            *self._building(),
            *self._speeds(),
        ]
        if not self.embeds and (self.joules_per_token or self.engine != "onnxruntime"):
            rows.append(("energy", self._energy))
        rows.append(("verdict", self.verdict))
        rows += [("missing", one) for one in self.missing]
        rows += [("note", one) for one in self.notes]
        absent = {"packing": not self.packed_bytes, "draft head": not self.draft_bytes}
        rows = [row for row in rows if not absent.get(row[0])]
        lines = [f"{name:<15} {value}" for name, value in rows]
        lines += [f"{'try':<15} {advice}" for advice in self.advice]
        note = f"Estimates from {self.basis}; the range holds 80% of measurements."
        return "\n".join([*lines, note])

    def _building(self) -> list[tuple[str, str]]:
        if not self.build_bytes:
            return [("to export", format_bytes(self.export_bytes))]
        peak = format_bytes(self.build_bytes)
        if self.build_room_bytes:
            peak += f" of {format_bytes(self.build_room_bytes)}"
        if self.build_segments > 1:
            peak += f", in {self.build_segments} segments"
        return [("to build", peak)]

    def _speeds(self) -> list[tuple[str, str]]:
        prompt = f"{range_text(self.prefill_ms)} ms, {self._prompts()}"
        if self.embeds:
            return [("vector", prompt)]
        decode = f"{range_text(self.tokens_per_second)} tokens/s{self._bound}"
        return [("first token", prompt), ("decode", decode)]

    def _prompts(self) -> str:
        if self.batch == 1:
            return f"prompt of {self.prompt:,} tokens"
        return f"{self.batch} prompts of {self.prompt:,} tokens each"


def range_text(estimate: Estimate) -> str:
    """`40 (20 to 80)`."""
    return " ".join((short(estimate.value), f"({short(estimate.low)} to {short(estimate.high)})"))


def short(value: float) -> str:
    """A number with three significant digits, or all digits of a large one."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
