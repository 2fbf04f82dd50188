"""Times of layers on this machine's engine, in place of the planner's predictions."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import msgspec

from edgelm.compress.puzzle.alternatives import Alternative, with_alternatives
from edgelm.devices.calibration.calibrate import MEASURED, NAME
from edgelm.devices.calibration.halves import HalfTimes, Passes, time_halves
from edgelm.devices.calibration.stack import StackShape
from edgelm.devices.detection.detect import detect
from edgelm.devices.detection.threads import physical_cores
from edgelm.devices.profile import Profile
from edgelm.errors import BadInput
from edgelm.planning import Plan, PlanRequest
from edgelm.quantize.precision import KvType
from edgelm.spec.decoder import DecoderSpec, LayerSpec

_ENGINE = "onnxruntime"


class MeasuredTimes(msgspec.Struct, frozen=True):
    """Times of every kind of half of a layer, and of the head, by name; and where they are from.

    step_us: fixed time of a decoding step, which is the profile's.
    """

    machine: str
    threads: int
    step_us: float
    kinds: dict[str, HalfTimes]

    def of(self, spec: DecoderSpec) -> HalfTimes:
        """Times of a decoder whose halves were all measured: their sum."""
        counts = Counter(kind_name(shape) for shape in _shapes(spec))
        decode, prompt = (
            sum(count * getattr(self.kinds[name], field) for name, count in counts.items())
            for field in ("decode", "prompt")
        )
        return HalfTimes(decode + self.step_us / 1e3, prompt + self.step_us / 1e3)


class MeasuredRun(msgspec.Struct, frozen=True):
    """What is measured: kinds of halves by name, in the precision and depth of a plan."""

    shapes: dict[str, StackShape]
    precision: str
    kv: KvType
    passes: Passes
    step_us: float

    def times(self, progress: Callable[[int, int], None]) -> MeasuredTimes:
        """Measure now; raises as `time_halves`."""
        threads, shapes = physical_cores(), list(self.shapes.values())
        found = time_halves(
            shapes, self.precision, self.kv, self.passes, threads=threads, progress=progress
        )
        kinds = dict(zip(self.shapes, found, strict=True))
        return MeasuredTimes(detect().cpu.name, threads, self.step_us, kinds)


def measured_run(
    spec: DecoderSpec, all_alternatives: Sequence[Alternative], profile: Profile, teacher: Plan
) -> MeasuredRun:
    """The measurement that the costs of alternatives need.

    Args:
        spec: the teacher.
        all_alternatives: of its layers.
        profile: of this machine.
        teacher: its plan: precision, cache, prompt.
    """
    shapes = {kind_name(shape): shape for shape in _shapes(spec)}
    for one in all_alternatives:
        student = with_alternatives(spec, [one])
        own = _halves(student, student.layers[one.layer])
        shapes |= {kind_name(shape): shape for shape in own}
    measured = profile.engine(teacher.engine).measured
    return MeasuredRun(
        shapes,
        teacher.precision,
        teacher.kv,
        Passes(teacher.prompt, teacher.prompt, profile.prefill_chunk),
        0.0 if measured is None else measured.step_us,
    )


def check_measurable(spec: DecoderSpec, profile: Profile, request: PlanRequest) -> None:
    """Raise BadInput unless layers can be timed here as the target would run them."""
    engine = profile.engine(request.engine).name
    reason = None
    if profile.name != NAME or engine != _ENGINE:
        reason = (
            f"it times layers with ONNX Runtime on this machine, and [target] is {profile.name} "
            f'with {engine}; set [target] name = "{NAME}" for this machine'
        )
    elif request.precision not in MEASURED:
        reason = (
            f"[target] precision is {request.precision}, which has no kernels of its own; set it "
            f"to {', '.join(MEASURED)}"
        )
    elif spec.is_hybrid or spec.attention_gate or spec.hidden_act == "xielu":
        reason = f"layers of {spec.family} have parts for which there is no measurement"
    if reason is not None:
        raise BadInput(
            f'[puzzle] costs = "measured": {reason}, or use the planner\'s costs '
            '(costs = "planner")'
        )


def kind_name(shape: StackShape) -> str:
    """E.g. `attention 9/3 of 64`, `MLP 1536`, `head 49152`."""
    if shape.outputs:
        return f"head {shape.outputs}"
    if shape.ffn:
        return f"MLP {shape.ffn}"
    window = "" if shape.window is None else f", window {shape.window}"
    return f"attention {shape.heads}/{shape.kv_heads} of {shape.head_dim}{window}"


def _shapes(spec: DecoderSpec) -> Iterator[StackShape]:
    for layer in spec.layers:
        yield from _halves(spec, layer)
    if spec.has_head:
        yield StackShape(1, spec.hidden_size, outputs=spec.vocab_size)


def _halves(spec: DecoderSpec, layer: LayerSpec) -> Iterator[StackShape]:
    hidden = spec.hidden_size
    if layer.attends:
        heads = spec.heads(layer)
        yield StackShape(
            1,
            hidden,
            heads=heads.queries,
            kv_heads=heads.keys,
            head_dim=heads.dim,
            window=layer.window,
            normed=spec.qk_norm != "none",
        )
    if size := spec.mlp_size(layer):
        yield StackShape(1, hidden, ffn=size, gated=spec.gated_mlp)
