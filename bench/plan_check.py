"""How well the planner predicts this machine: shapes of random weights, planned and measured.

Speed and memory depend on shapes and precisions, not on what the weights say, so that random
decoders of many shapes show where the planner is right and where it is not.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edgelm.bench.machine import Machine
from edgelm.bench.measure import Samples, measure
from edgelm.bench.peers.engines import bundle_engines
from edgelm.bench.random_model import RandomShape, save_random_model
from edgelm.bench.report.statistics import percentile
from edgelm.bench.workload import Test, context_needed
from edgelm.bundle import read_manifest
from edgelm.devices.planner.plan import plan
from edgelm.devices.profile import Profile
from edgelm.errors import BadInput
from edgelm.export.pipeline import export_model
from edgelm.planning import Plan, PlanRequest

SHAPES = (
    RandomShape(12, 512, 1536, 8, 4, 32768, "int4", "int8"),
    RandomShape(8, 768, 3072, 12, 12, 32768, "fp32", "fp32"),
    RandomShape(30, 576, 1536, 9, 3, 49152, "int4", "int8"),
    RandomShape(6, 1024, 4096, 16, 8, 32768, "int8", "int8"),
    RandomShape(24, 768, 2048, 12, 4, 32768, "fp32", "int8"),
    RandomShape(40, 640, 1792, 10, 2, 32768, "int8", "int8"),
    RandomShape(16, 1024, 2816, 16, 4, 49152, "int4", "int8"),
    RandomShape(20, 1280, 3456, 20, 4, 49152, "int8", "fp32"),
    RandomShape(28, 1024, 3072, 16, 8, 65536, "int4", "int8"),
    RandomShape(12, 2048, 5632, 32, 8, 32768, "int4", "int8"),
)
_PROMPT = Test("pp", 512)
_DECODE = Test("tg", 32, 512)
# What random weights are calibrated and measured on does not matter: short, to be quick.
_TEXT = "Speed and memory depend on shapes and precisions, not on the values of weights. " * 12


class Checked(msgspec.Struct, frozen=True):
    """One shape, planned and measured."""

    name: str
    parameters: int
    plan: Plan
    decode_ms: float
    prefill_ms: float
    peak_bytes: int

    @property
    def errors(self) -> dict[str, float]:
        """Measured over predicted, less one."""
        return {
            "decode": self.decode_ms / self.plan.decode_ms.value - 1,
            "prefill": self.prefill_ms / self.plan.prefill_ms.value - 1,
            "memory": self.peak_bytes / self.plan.total_bytes - 1,
        }


class Check(msgspec.Struct, frozen=True):
    """All shapes, and how well the plan did."""

    machine: Machine
    profile: str
    rounds: int
    shapes: tuple[Checked, ...]

    @property
    def rank_correlation(self) -> float:
        """Spearman's, of predicted and measured decode times."""
        return _pearson(
            _ranks([one.plan.decode_ms.value for one in self.shapes]),
            _ranks([one.decode_ms for one in self.shapes]),
        )

    def median_error(self, kind: str) -> float:
        """Median of the absolute relative errors of decode, prefill or memory."""
        return percentile([abs(one.errors[kind]) for one in self.shapes], 50)


def check_plan(
    profile: Profile,
    machine: Machine,
    *,
    rounds: int,
    threads: int,
    progress: Callable[[str], None],
    shapes: Sequence[RandomShape] = SHAPES,
) -> Check:
    """Export, plan and measure every shape, one after another."""
    context = context_needed([_PROMPT, _DECODE])
    checked = []
    for shape in shapes:
        progress(f"{shape.name}: exporting random weights")
        with tempfile.TemporaryDirectory(prefix="edgelm-plan-") as scratch:
            bundle = _bundle(shape, Path(scratch), context)
            spec = read_manifest(bundle).spec
            request = PlanRequest(shape.precision, shape.kv, context, prompt=_PROMPT.tokens)
            planned = plan(spec, profile, request)
            samples = _measured(bundle, rounds=rounds, context=context, threads=threads)
        one = _checked(shape, planned, samples)
        checked.append(one)
        progress(f"{shape.name}: {_line(one)}")
    return Check(machine, profile.title, rounds, tuple(checked))


def _bundle(shape: RandomShape, scratch: Path, context: int) -> Path:
    model = save_random_model(shape, scratch / "model")
    text = scratch / "text.txt"
    text.write_text(_TEXT)
    export_model(
        model,
        scratch / "bundle",
        precision=shape.precision,
        kv=shape.kv,
        context=context,
        gate="off",
        calibration=text,
        gate_text=text,
    )
    return scratch / "bundle"


def _measured(bundle: Path, *, rounds: int, context: int, threads: int) -> Samples:
    samples, failed = measure(
        bundle_engines({bundle: read_manifest(bundle)}),
        [_PROMPT, _DECODE],
        rounds=rounds,
        context=context,
        threads=threads,
        quality=None,
    )
    if failed:
        raise BadInput(f"a shape could not be measured: {failed[0].reason}")
    return samples[0]


def _checked(shape: RandomShape, planned: Plan, samples: Samples) -> Checked:
    steps = [step for run in samples.steps_ms[_DECODE] for step in run]
    return Checked(
        name=shape.name,
        parameters=planned.parameters,
        plan=planned,
        decode_ms=percentile(steps, 50),
        prefill_ms=percentile(samples.prefill_ms[_PROMPT], 50),
        peak_bytes=samples.memory["peak_rss_bytes"],
    )


def _line(one: Checked) -> str:
    return ", ".join(f"{kind} {error:+.0%} of the plan" for kind, error in one.errors.items())


def check_table(check: Check) -> str:
    """The result as Markdown."""
    lines = [
        f"{check.profile}; {check.machine.cpu}, {check.machine.threads} threads, "
        f"{check.rounds} rounds.",
        "",
        "| shape | parameters | cache | decode at 512, ms: planned, measured | "
        "prefill of 512, ms | peak memory, MB |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for one in check.shapes:
        lines.append(
            f"| {one.name} | {one.parameters / 1e6:.0f} M | {one.plan.kv} | "
            f"{one.plan.decode_ms.value:.2f}, {one.decode_ms:.2f} | "
            f"{one.plan.prefill_ms.value:.0f}, {one.prefill_ms:.0f} | "
            f"{one.plan.total_bytes / 1e6:.0f}, {one.peak_bytes / 1e6:.0f} |"
        )
    medians = ", ".join(
        f"{kind} {check.median_error(kind):.1%}" for kind in ("decode", "prefill", "memory")
    )
    lines += [
        "",
        f"Rank correlation of decode times {check.rank_correlation:.3f}; median errors: {medians}.",
    ]
    return "\n".join(lines)


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]


def _pearson(first: Sequence[float], second: Sequence[float]) -> float:
    means = sum(first) / len(first), sum(second) / len(second)
    pairs = [(a - means[0], b - means[1]) for a, b in zip(first, second, strict=True)]
    product = sum(a * b for a, b in pairs)
    squares = sum(a * a for a, _ in pairs) * sum(b * b for _, b in pairs)
    return product / squares**0.5 if squares else 1.0
