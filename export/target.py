"""What an export is for: a device, its engine, and the graphs that the engine gets.

Made once, before any weight is read; every stage asks this record.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from edgelm.bundle import EngineRequirement
from edgelm.devices.kernels import KERNELS, Kernels
from edgelm.devices.planner.memory.build_memory import compiles
from edgelm.devices.planner.memory.build_room import room_of
from edgelm.devices.planner.memory.window_rows import cuts_windows
from edgelm.devices.planner.plan import plan as make_plan
from edgelm.devices.profile import Profile
from edgelm.devices.profile_tables import Engine
from edgelm.devices.tensorrt_versions import RTX, TENSORRT, engine_family, version_number
from edgelm.errors import BadInput, DoesNotFit
from edgelm.export.gate.measure import EvalSettings
from edgelm.export.graph.dtypes import Activations
from edgelm.export.graph.segments import BuildMemory, Segments
from edgelm.export.graph.write import GraphFormat
from edgelm.export.precision.legalize import Assignment, legalize
from edgelm.planning import Plan, PlanRequest
from edgelm.quantize.precision import EIGHT_BIT_KV, Bf16, KvType, Nvfp4, WeightPrecision
from edgelm.spec.assistant import read_layers
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.groups import executed_shape, groups
from edgelm.spec.tensor_shapes import tensor_shapes

# Tokens of each sequence decoded one by one on graphs whose kernels the CPU does not have.
_FOREIGN_TAIL = 8


@dataclass(frozen=True)
class Target:
    """A device's answer to a request, for one decoder.

    profile: the device.
    spec: the decoder.
    request: the options of the export that concern the device.
    plan: what it will be given.
    requirement: the engine that the bundle will need.
    """

    profile: Profile
    spec: DecoderSpec
    request: PlanRequest
    plan: Plan
    requirement: EngineRequirement

    @classmethod
    def from_request(
        cls, profile: Profile, spec: DecoderSpec, request: PlanRequest, gpus: Sequence[int] = ()
    ) -> "Target":
        """Plan what a device will be given.

        `gpus`: compute capabilities, times ten, that its engine is compiled for ahead of time.

        Raises:
            UnknownName, BadInput: the device lacks what was requested, or its engine is not
                compiled ahead of time.
        """
        plan = make_plan(spec, profile, request)
        return cls(profile, spec, request, plan, engine_requirement(profile, plan.engine, gpus))

    @property
    def engine(self) -> Engine:
        """The engine, as the profile describes it."""
        return self.profile.engine(self.plan.engine)

    @property
    def kernels(self) -> Kernels:
        """What the engine can run."""
        return KERNELS[self.requirement.name]

    @property
    def is_cpu(self) -> bool:
        """Whether the graph is made for the CPU provider that the gate runs on."""
        return self.requirement.name == "onnxruntime"

    @property
    def activations(self) -> Activations:
        """The type of the residual stream.

        A cache of 16 or 32 bits shares it. Beside one of 8 bits it is what the engine's kernels
        are made for, and bf16 rather than fp16 where the stream may exceed that (Gemma).
        """
        kv = self.plan.kv
        if kv != "int8" and kv != "fp8":  # spelled out for mypy
            return kv
        if self.plan.engine == "onnxruntime":
            return "fp32"
        wide = self.plan.precision == "bf16" or self.spec.exceeds_fp16
        return "bf16" if wide and "bf16" in self.engine.kv else "fp16"

    @property
    def prefill_chunk(self) -> int:
        """Tokens of a prompt that are processed at once."""
        return min(self.profile.prefill_chunk, self.plan.context)

    @property
    def eval_settings(self) -> EvalSettings:
        """How graphs are run for the gate."""
        return EvalSettings(None if self.is_cpu else _FOREIGN_TAIL, self.prefill_chunk)

    @property
    def format(self) -> GraphFormat:
        """The graph that the bundle gets."""
        plan = self.plan
        opset = _old_opset(self.requirement)
        return GraphFormat(
            plan.dialect,
            plan.kv,
            self.activations,
            plan.context,
            opset,
            cuts_windows=cuts_windows(plan.engine, plan.kv),
            hidden=self.request.draft_head or self.request.assistant is not None,
            lent=read_layers(self.request.assistant),
        )

    @property
    def check_format(self) -> GraphFormat:
        """The same graph with dequantized weights, for a CPU that lacks kernels of its types."""
        return replace(self.format, dequantized=True)

    @property
    def candidate_format(self) -> GraphFormat:
        """A graph with the same weights that this machine's CPU runs fast.

        Its cache is as coarse as the target's if that has 8 bits.
        """
        coarse = self.is_cpu or self.plan.kv in EIGHT_BIT_KV
        kv: KvType = self.plan.kv if coarse else "fp32"
        return GraphFormat("ort", kv, "fp32", self.plan.context)

    def segments(self, requested: int | None) -> Segments:
        """Into how many segments the bundle's graph is cut.

        Raises:
            BadInput: a number other than 1 for an engine that compiles nothing.
        """
        if not compiles(self.requirement.name):
            if requested not in (None, 1):
                raise BadInput(
                    f"{self.requirement.name} runs the graph as it is and compiles nothing: "
                    f"leave out --segments {requested}"
                )
            return 1
        return requested or BuildMemory(
            self.requirement.name, room_of(self.profile).available_bytes
        )

    def runs_on_cpu(self, precisions: Iterable[WeightPrecision]) -> bool:
        """Whether ONNX Runtime's CPU provider has kernels for the types of the bundle's graph."""
        if self.is_cpu:
            return True
        foreign = self.plan.kv == "fp8" or self.activations == "bf16"
        return not foreign and not any(isinstance(one, Nvfp4 | Bf16) for one in precisions)

    @property
    def columns(self) -> dict[str, int]:
        """Inputs of every group's matrix."""
        shapes = tensor_shapes(self.spec)
        return {group: executed_shape(self.spec, group, shapes)[1] for group in groups(self.spec)}

    @property
    def weights(self) -> dict[str, int]:
        """How many weights every group's matrix has."""
        shapes = tensor_shapes(self.spec)
        return {
            group: math.prod(executed_shape(self.spec, group, shapes))
            for group in groups(self.spec)
        }

    def legalize(self, assignment: Mapping[str, WeightPrecision]) -> Assignment:
        """The assignment as the engine can run it; see edgelm.export.precision.legalize."""
        size, symmetric = self.request.group_size, self.request.symmetric
        return legalize(
            assignment, self.columns, self.kernels, group_size=size, symmetric=symmetric
        )

    def with_wider_cache(self) -> "Target | None":
        """The same with the engine's widest cache, for a model that fails with one of 8 bits.

        None where the cache type was requested, is not one of 8 bits, or where the wider one does
        not fit on the device.
        """
        if self.request.kv is not None or self.plan.kv not in EIGHT_BIT_KV:
            return None
        wider = msgspec.structs.replace(
            self.request, kv=self.engine.kv[0], context=self.plan.context
        )
        try:
            plan = make_plan(self.spec, self.profile, wider)
        except (BadInput, DoesNotFit):
            return None
        if not plan.fits:
            return None
        return Target(self.profile, self.spec, self.request, plan, self.requirement)


def engine_requirement(
    profile: Profile, name: str | None, gpus: Collection[int]
) -> EngineRequirement:
    """The engine that a bundle for a device needs.

    Raises:
        BadInput: `gpus` for an engine that is not compiled ahead of time.
    """
    engine = profile.engine(name)
    family = engine_family(engine.name)
    if gpus and family != RTX:
        raise BadInput(
            f"{engine.name} is compiled on the device itself, for its own GPU; --sm goes with "
            f"{RTX}, which compiles ahead of time"
        )
    own = (profile.sm,) if profile.sm else ()
    return EngineRequirement(family, engine.version, tuple(sorted(set(gpus))) or own)


def _old_opset(requirement: EngineRequirement) -> int | None:
    """The newest opset that an engine reads, where it does not read its dialect's own."""
    old = requirement.name == TENSORRT and version_number(requirement.version) < (10, 0)
    return 17 if old else None
