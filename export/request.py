"""The options of one export."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, get_args

from edgelm.checkpoint.source import Checkpoint
from edgelm.devices.kernels import Kernels
from edgelm.devices.planner.memory.build_memory import MAX_SEGMENTS
from edgelm.errors import BadInput, UnknownName
from edgelm.export.adapters.switchable import SwitchableAdapter
from edgelm.export.quantize.methods import METHODS
from edgelm.export.source.text import CALIBRATION, GATE
from edgelm.planning import SOURCE, PlanRequest
from edgelm.quantize.precision import WeightPrecision, parse_precision

GateMode = Literal["on", "off", "none"]


@dataclass(frozen=True)
class ExportRequest:
    """Options of `edgelm.export`; see there.

    `assistant` is opened, for the model that is exported.
    """

    plan: PlanRequest = field(default_factory=PlanRequest)
    exceptions: Mapping[str, str] = field(default_factory=dict)
    gate: GateMode = "on"
    calibration: Path = CALIBRATION
    gate_text: Path = GATE
    method: str = "auto"
    max_size: int | None = None
    segments: int | None = None
    adapters: tuple[SwitchableAdapter, ...] = ()
    assistant: Checkpoint | None = None

    @property
    def adapted(self) -> tuple[str, ...]:
        """Groups that one of the adapters changes, in the order of the first that does."""
        return tuple(dict.fromkeys(group for one in self.adapters for group in one.groups))

    def check(self, groups: list[str]) -> None:
        """Check what needs no weights.

        Raises:
            BadInput: an exception that matches no group, options that contradict each other, an
                unknown gate, or a number of segments below 1.
            UnknownName: an unknown method.
        """
        if self.method not in METHODS:
            raise UnknownName(f"unknown method {self.method!r}; known: {', '.join(METHODS)}")
        if self.segments is not None and not 1 <= self.segments <= MAX_SEGMENTS:
            raise BadInput(
                f"segments is {self.segments}, expected 1 to {MAX_SEGMENTS}, or auto for the "
                "fewest with which the engine can be compiled on the device"
            )
        if self.gate not in get_args(GateMode):
            raise BadInput(
                f"gate is {self.gate!r}, expected one of {', '.join(get_args(GateMode))}"
            )
        if self.gate == "none" and (self.plan.precision == "auto" or self.adapters):
            raise BadInput(
                "precision auto and switchable adapters need the gate's figures: name a precision, "
                "leave out the adapters, or let the gate measure (gate on, or off to ignore it)"
            )
        if self.max_size is not None and self.plan.precision != "auto":
            raise BadInput(
                "a maximum size needs --precision auto, which chooses the mixture, but "
                f"{self.plan.precision} was requested"
            )
        if self.plan.precision == SOURCE and (
            self.plan.group_size is not None or self.plan.symmetric is not None
        ):
            raise BadInput(
                "precision source keeps the group sizes and zero points of the checkpoint: leave "
                "out --group-size and --symmetric, or name a precision"
            )
        if self.exceptions and self.plan.precision == "auto":
            raise BadInput(
                "--layer needs an explicit --precision: auto chooses that of every group itself"
            )
        for pattern, name in self.exceptions.items():
            if name != SOURCE:
                parse_precision(name)
            if not any(fnmatchcase(group, pattern) for group in groups):
                raise BadInput(
                    f"the pattern {pattern!r} matches no group; groups are e.g. {groups[0]}, "
                    f"{groups[-2]}, {groups[-1]}"
                )

    def excepts(self, group: str) -> bool:
        """Whether an exception's pattern matches the group."""
        return any(fnmatchcase(group, pattern) for pattern in self.exceptions)

    def names(self, groups: Iterable[str]) -> dict[str, str]:
        """The name of every group's precision; of patterns that match, the last one's."""
        named = {}
        for group in groups:
            named[group] = self.plan.precision
            for pattern, other in self.exceptions.items():
                if fnmatchcase(group, pattern):
                    named[group] = other
        return named

    def assignment(
        self,
        columns: Mapping[str, int],
        rules: Kernels,
        source: Mapping[str, WeightPrecision] = {},
    ) -> dict[str, WeightPrecision]:
        """Every group's precision with an engine, for an explicit request; later patterns win.

        Args:
            columns: inputs of every group's matrix.
            rules: the engine's.
            source: every group's, for the precision `source`.
        """
        requested, assignment = self.plan, {}
        for group, name in self.names(columns).items():
            if name == SOURCE:
                assignment[group] = source[group]
                continue
            assignment[group] = rules.precision(
                name,
                columns[group],
                group_size=requested.group_size,
                symmetric=requested.symmetric,
            )
        return assignment
