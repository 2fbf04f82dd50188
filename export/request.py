"""What one export was asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from edgelm.errors import BadInput
from edgelm.export.text import CALIBRATION, GATE
from edgelm.planning import Request
from edgelm.precision import Int4, Int8, WeightPrecision, parse_precision


@dataclass(frozen=True)
class ExportRequest:
    """Options of `edgelm.export`; see there."""

    plan: Request = field(default_factory=Request)
    exceptions: Mapping[str, str] = field(default_factory=dict)
    gate: Literal["on", "off"] = "on"
    calibration: Path = CALIBRATION
    gate_text: Path = GATE

    def check(self, groups: list[str]) -> None:
        """Raise BadInput for an exception that matches no group, or an impossible mixture."""
        if self.exceptions and self.plan.precision == "auto":
            raise BadInput(
                "exceptions by pattern go with an explicit precision; auto chooses every group"
            )
        for pattern, name in self.exceptions.items():
            parse_precision(name)
            if not any(fnmatchcase(group, pattern) for group in groups):
                raise BadInput(
                    f"the pattern {pattern!r} matches no group; groups are e.g. {groups[0]}, "
                    f"{groups[-2]}, {groups[-1]}"
                )

    def precision_of(self, name: str) -> WeightPrecision:
        """A precision by name with this request's group size and symmetry."""
        return parse_precision(name, group_size=self.plan.group_size, symmetric=self.plan.symmetric)

    def low(self) -> Int4:
        """What `auto` starts from: small groups, since the gate is what binds."""
        precision = parse_precision(
            "int4", group_size=self.plan.group_size or 32, symmetric=self.plan.symmetric
        )
        assert isinstance(precision, Int4)
        return precision

    def high(self) -> Int8:
        """What `auto` raises groups to: symmetric, since zero points buy nothing at 8 bits."""
        precision = parse_precision("int8", group_size=self.plan.group_size)
        assert isinstance(precision, Int8)
        return precision

    def assignment(self, groups: list[str]) -> dict[str, WeightPrecision]:
        """Every group's precision, for an explicit request; later patterns win."""
        base = self.precision_of(self.plan.precision)
        assignment = dict.fromkeys(groups, base)
        for pattern, name in self.exceptions.items():
            for group in groups:
                if fnmatchcase(group, pattern):
                    assignment[group] = self.precision_of(name)
        return assignment
