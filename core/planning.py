"""What is known of a deployment before any work: the planner's question and its answer."""

import msgspec

from edgelm.command import format_bytes
from edgelm.precision import KvType


class Request(msgspec.Struct, frozen=True):
    """What is asked of a device. `precision` is a name of edgelm.precision or `auto`."""

    precision: str = "auto"
    kv: KvType | None = None
    context: int | None = None
    group_size: int | None = None
    symmetric: bool | None = None


class Plan(msgspec.Struct, frozen=True):
    """What the device will be given and what that costs; every figure is an estimate."""

    target: str
    engine: str
    dialect: str
    precision: str
    kv: KvType
    context: int
    parameters: int
    weight_bytes: int
    kv_bytes: int
    workspace_bytes: int
    runtime_bytes: int
    build_bytes: int
    budget_bytes: int
    prefill_512_ms: float
    decode_ms: float
    binds: str
    fits: bool
    advice: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """Memory while it runs."""
        return self.weight_bytes + self.kv_bytes + self.workspace_bytes + self.runtime_bytes

    def table(self) -> str:
        """The plan for people."""
        rows = [
            ("target", f"{self.target} ({self.engine}, {self.dialect} dialect)"),
            ("precision", f"{self.precision}, {self.kv} cache, context {self.context:,}"),
            ("parameters", f"{self.parameters / 1e6:,.1f} M"),
            ("weights", format_bytes(self.weight_bytes)),
            ("KV cache", format_bytes(self.kv_bytes)),
            ("workspace", format_bytes(self.workspace_bytes)),
            ("runtime", format_bytes(self.runtime_bytes)),
            ("total", f"{format_bytes(self.total_bytes)} of {format_bytes(self.budget_bytes)}"),
            ("to export", format_bytes(self.build_bytes)),
            ("prefill of 512", f"{self.prefill_512_ms:,.0f} ms (time to first token)"),
            ("decode", f"{1e3 / self.decode_ms:,.1f} tokens/s at depth 0, bound by {self.binds}"),
            ("fits", "yes" if self.fits else "no"),
        ]
        lines = [f"{name:<15} {value}" for name, value in rows]
        lines += [f"{'try':<15} {advice}" for advice in self.advice]
        return "\n".join([*lines, "All figures are estimates from the device's profile."])
