"""The graphs of one export: the target's, the one that is checked for it, and candidates.

Candidates are compared where that is fast, on this machine's CPU; what is delivered is judged
itself.
"""

from collections.abc import Collection, Iterable
from pathlib import Path

from edgelm.bundle import EngineRequirement
from edgelm.devices.profile import load_profile
from edgelm.export.bundle.compile_ahead import opset_for
from edgelm.export.graph.dtypes import Activations
from edgelm.export.graph.write import Written, write_graph
from edgelm.export.precision.bisect import Assignment
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.planning import Plan
from edgelm.quantize.precision import EIGHT_BIT_KV, Bf16, KvType, Nvfp4, WeightPrecision
from edgelm.spec.decoder import DecoderSpec


class PlannedGraphs:
    """Writes a plan's graphs.

    Attributes:
        native: the target is this machine's CPU.
        activations: the type of the residual stream on the target.
        candidate_kv: the cache of candidates, as coarse as the target's if that has 8 bits.
    """

    def __init__(self, plan: Plan, need: EngineRequirement, spec: DecoderSpec) -> None:
        self.plan = plan
        self.opset = opset_for(need)
        self.native = need.name == "onnxruntime"
        caches = load_profile(plan.target).engine(plan.engine).kv
        self.activations = activations_for(plan, spec, caches)
        rounds = self.native or plan.kv in EIGHT_BIT_KV
        self.candidate_kv: KvType = plan.kv if rounds else "fp32"

    def needs_widening(self, precisions: Iterable[WeightPrecision]) -> bool:
        """Whether ONNX Runtime's CPU provider lacks kernels for the types of the target's graph."""
        foreign = self.plan.kv == "fp8" or self.activations == "bf16"
        return foreign or any(isinstance(one, Nvfp4 | Bf16) for one in precisions)

    def write(
        self, folder: Path, quantizer: Quantizer, assignment: Assignment, *, widened: bool = False
    ) -> Written:
        """Write the target's graph; `widened` as in write_graph."""
        return write_graph(
            folder,
            quantizer.weights,
            assignment,
            dialect=self.plan.dialect,
            kv=self.plan.kv,
            activations=self.activations,
            context=self.plan.context,
            quantizer=quantizer,
            opset=self.opset,
            widened=widened,
        )

    def write_candidate(
        self, folder: Path, quantizer: Quantizer, assignment: Assignment
    ) -> Written:
        """Write a graph with the same weights that this machine's CPU runs fast."""
        return write_graph(
            folder,
            quantizer.weights,
            assignment,
            dialect="ort",
            kv=self.candidate_kv,
            activations="fp32",
            context=self.plan.context,
            quantizer=quantizer,
        )


def activations_for(plan: Plan, spec: DecoderSpec, caches: Collection[KvType]) -> Activations:
    """The type of the residual stream, on an engine that has these types of caches.

    A cache of 16 or 32 bits shares it. Beside one of 8 bits it is what the engine's kernels are
    made for, and bf16 rather than fp16 where the stream may outgrow that (Gemma).
    """
    if plan.kv != "int8" and plan.kv != "fp8":  # spelled out for mypy
        return plan.kv
    if plan.engine == "onnxruntime":
        return "fp32"
    wide = plan.precision == "bf16" or spec.norm_plus_one
    return "bf16" if wide and "bf16" in caches else "fp16"
