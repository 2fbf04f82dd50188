"""The planner's question and answer: what a deployment will cost, before any work is done."""

import msgspec

from edgelm.cli import format_bytes
from edgelm.quantize.precision import KvType


class Estimate(msgspec.Struct, frozen=True):
    """A predicted value, and the range that holds the true one in about 80% of cases."""

    value: float
    low: float
    high: float

    def per_second(self, count: float = 1.0) -> "Estimate":
        """The rate of `count` items per this many milliseconds."""
        return Estimate(*(1e3 * count / ms for ms in (self.value, self.high, self.low)))


class PlanRequest(msgspec.Struct, frozen=True):
    """What a deployment should be. `precision` is a name of edgelm.quantize.precision or `auto`.

    With None, `engine` is the first of the profile and `power_mode` its default. `prompt` is the
    length in tokens for which the time to the first token is predicted, and the depth at which
    decoding is timed.
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


class Plan(msgspec.Struct, frozen=True):
    """The chosen configuration and its predicted costs; every figure is an estimate.

    `prefill_ms` is the time to the first token of a prompt of `prompt` tokens, `decode_ms` the
    time of one token after it, `joules_per_token` its energy if the power is known. `binds` is
    the bottleneck of decoding: memory bandwidth, per-layer overhead or, over the budget, memory.
    `packed_bytes` are copies of weights that an engine holds beside the mapped file. `missing`
    lists what the request lacks; each line of `advice` is a change that is enough by itself.
    `basis` is the source of the speeds; `notes` are warnings that the figures do not show.
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
    missing: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """Peak memory while it runs."""
        weights = self.weight_bytes + self.packed_bytes
        return weights + self.kv_bytes + self.workspace_bytes + self.runtime_bytes

    @property
    def tokens_per_second(self) -> Estimate:
        """Decode rate, summed over all sequences."""
        return self.decode_ms.per_second(self.batch)

    @property
    def works(self) -> bool:
        """Whether it fits in memory and is as fast as requested."""
        return self.fits and self.fast_enough

    @property
    def verdict(self) -> str:
        """One phrase: `fits`, `does not fit` or `too slow`."""
        if not self.fits:
            return "does not fit"
        return "fits" if self.fast_enough else "too slow"

    @property
    def _bound(self) -> str:
        # Over the budget nothing decodes: `memory` would read as its bandwidth.
        return f", bound by {self.binds}" if self.fits else ", if it fitted"

    @property
    def _energy(self) -> str:
        if self.joules_per_token is None:
            return f"not known: no power limit is published for {self.power_mode}"
        return f"{_range(self.joules_per_token)} J per token"

    def table(self) -> str:
        """The plan as text, one figure a line."""
        rows = [
            ("target", f"{self.target}, {self.power_mode} ({self.engine}, {self.dialect} dialect)"),
            ("precision", f"{self.precision}, {self.kv} cache, context {self.context:,}"),
            ("parameters", f"{self.parameters / 1e6:,.1f} M"),
            ("weights", format_bytes(self.weight_bytes)),
            ("packed copy", format_bytes(self.packed_bytes)),
            ("KV cache", format_bytes(self.kv_bytes)),
            ("workspace", format_bytes(self.workspace_bytes)),
            ("runtime", format_bytes(self.runtime_bytes)),
            ("total", f"{format_bytes(self.total_bytes)} of {format_bytes(self.budget_bytes)}"),
            ("to build", format_bytes(self.build_bytes)),
            ("first token", f"{_range(self.prefill_ms)} ms, prompt of {self.prompt:,} tokens"),
            ("decode", f"{_range(self.tokens_per_second)} tokens/s{self._bound}"),
        ]
        if self.joules_per_token or self.engine != "onnxruntime":
            rows.append(("energy", self._energy))
        rows.append(("verdict", self.verdict))
        rows += [("missing", one) for one in self.missing]
        rows += [("note", one) for one in self.notes]
        if not self.packed_bytes:
            rows = [row for row in rows if row[0] != "packed copy"]
        lines = [f"{name:<15} {value}" for name, value in rows]
        lines += [f"{'try':<15} {advice}" for advice in self.advice]
        note = f"Estimates from {self.basis}; the range holds 80% of measurements."
        return "\n".join([*lines, note])


def _range(estimate: Estimate) -> str:
    return " ".join((short(estimate.value), f"({short(estimate.low)} to {short(estimate.high)})"))


def short(value: float) -> str:
    """A number with three significant digits, or all digits of a large one."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
