"""What is known of a deployment before any work: the planner's question and its answer."""

import msgspec

from edgelm.cli import format_bytes
from edgelm.quantize.precision import KvType


class Estimate(msgspec.Struct, frozen=True):
    """A predicted figure and the range that holds the truth in about 80% of cases."""

    value: float
    low: float
    high: float

    def per_second(self, count: float = 1.0) -> "Estimate":
        """The rate of `count` things in this many milliseconds."""
        return Estimate(*(1e3 * count / ms for ms in (self.value, self.high, self.low)))


class PlanRequest(msgspec.Struct, frozen=True):
    """What is asked of a device. `precision` is a name of edgelm.quantize.precision or `auto`.

    `engine` and `power_mode` are the device's first and its fastest where None. The prompt's
    length is what the time to the first token is of, and the depth at which decoding is timed.
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
    """What the device will be given and what that costs; every figure is an estimate.

    `prefill_ms` is the time to the first token of a prompt of `prompt` tokens, `decode_ms` the
    time of a token after them, `joules_per_token` its energy where a power is known. `binds` is
    what the token waits for most: memory bandwidth, per-layer overhead or, over the budget,
    memory. `packed_bytes` is what an engine keeps of the weights beside the file it maps.
    `missing` says what stands in the way, and every line of `advice` on its own removes it.
    `basis` says what the speeds were derived from, `notes` what is not in the figures.
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
        """Memory while it runs, at its peak."""
        weights = self.weight_bytes + self.packed_bytes
        return weights + self.kv_bytes + self.workspace_bytes + self.runtime_bytes

    @property
    def tokens_per_second(self) -> Estimate:
        """The decode rate of all sequences together."""
        return self.decode_ms.per_second(self.batch)

    @property
    def works(self) -> bool:
        """It fits and is as fast as was asked."""
        return self.fits and self.fast_enough

    def table(self) -> str:
        """The plan for people."""
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
            ("first token", f"{_range(self.prefill_ms)} ms after a prompt of {self.prompt:,}"),
            ("decode", f"{_range(self.tokens_per_second)} tokens/s, bound by {self.binds}"),
        ]
        if self.joules_per_token:
            rows.append(("energy", f"{_range(self.joules_per_token)} J a token"))
        rows.append(("works", "yes" if self.works else "no"))
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
    """Three digits, and never an exponent above one."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
