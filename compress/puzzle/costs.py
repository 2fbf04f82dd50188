"""What alternatives save on a device, as the planner predicts it or as it was measured."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from edgelm.compress.puzzle.alternatives import Alternative, with_alternatives
from edgelm.compress.puzzle.measured import MeasuredTimes
from edgelm.compress.search.settings import Budget
from edgelm.devices.planner.plan import predict
from edgelm.devices.profile import Profile
from edgelm.errors import DoesNotFit
from edgelm.planning import Estimate, Plan
from edgelm.spec.decoder import DecoderSpec


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of a budget: what the teacher takes, what may be taken, and what would be saved.

    saved: by alternative, in the unit of the others.
    """

    name: str
    teacher: float
    limit: float
    saved: tuple[float, ...]

    def exceeded_by(self, chosen: Sequence[bool]) -> float:
        """How far a choice of alternatives is above the limit; at most 0 within it."""
        taken = self.teacher - sum(
            one for one, taken in zip(self.saved, chosen, strict=True) if taken
        )
        return taken - self.limit


class PuzzleCosts:
    """Predictions for students of one teacher on one device; times may be measured ones."""

    def __init__(
        self,
        spec: DecoderSpec,
        profile: Profile,
        budget: Budget,
        measured: MeasuredTimes | None = None,
    ) -> None:
        self.spec, self.profile, self.budget, self.measured = spec, profile, budget, measured
        context = budget.request.context or min(4096, spec.max_position_embeddings)
        self.request = msgspec.structs.replace(budget.request, context=context)

    def plan(self, chosen: Sequence[Alternative]) -> Plan:
        """The plan of the student with these alternatives."""
        student = self._student(chosen)
        if self.measured is None:
            return predict(student, self.profile, self.request)
        rate = self.request.min_tokens_per_second
        untimed = msgspec.structs.replace(self.request, min_tokens_per_second=None)
        planned, times = predict(student, self.profile, untimed), self.measured.of(student)
        decode, first = (Estimate(one, one, one) for one in (times.decode, times.prompt))
        found = decode.per_second().value
        slow = rate is not None and found < rate
        lacks = (f"speed: {found:.1f} tokens/s measured, {rate:.1f} required",) if slow else ()
        return msgspec.structs.replace(
            planned,
            decode_ms=decode,
            prefill_ms=first,
            fast_enough=not slow,
            required_tokens_per_second=rate,
            missing=(*planned.missing, *lacks),
            basis=f"layers timed on {self.measured.machine}",
        )

    def untimed(self) -> "PuzzleCosts":
        """The same without limits of time."""
        request = msgspec.structs.replace(self.budget.request, min_tokens_per_second=None)
        budget = msgspec.structs.replace(self.budget, first_token_ms=None, request=request)
        return PuzzleCosts(self.spec, self.profile, budget, self.measured)

    def missing(self, chosen: Sequence[Alternative]) -> list[str]:
        """The limits that a student exceeds, as text."""
        planned, spec = self.plan(chosen), self._student(chosen)
        missing = list(planned.missing)
        first, most = planned.prefill_ms.value, self.budget.first_token_ms
        if most is not None and first > most:
            missing.append(f"first token {first:.0f} ms, limit {most:.0f} ms")
        limit = self._max_parameters()
        if limit is not None and spec.linear_parameters > limit:
            missing.append(
                f"{spec.linear_parameters / 1e6:.1f} M parameters, limit {limit / 1e6:.1f} M"
            )
        return missing

    def limits(self, all_alternatives: Sequence[Alternative]) -> list[Limit]:
        """The limits of the budget; every alternative's cost is what it saves alone."""
        full = self._costs(())
        each = [self._costs((one,)) for one in all_alternatives]
        return [
            Limit(name, full[name], limit, tuple(full[name] - one[name] for one in each))
            for name, limit in self._bounds().items()
        ]

    def check_possible(self, all_alternatives: Sequence[Alternative]) -> None:
        """Raise DoesNotFit if the smallest student exceeds the budget."""
        smallest = smallest_student(self.spec, all_alternatives)
        if missing := self.missing(smallest):
            raise DoesNotFit(
                f"no student of these alternatives meets the budget on {self.profile.name}; the "
                f"smallest exceeds: {'; '.join(missing)}. Relax a limit, add smaller mlp_ratios to "
                "[puzzle], or choose a smaller teacher or another precision"
            )

    def first_within(self, all_alternatives: Sequence[Alternative]) -> list[Alternative]:
        """A student within the budget, for estimates: every layer shrinks in turn, MLPs first."""
        chosen: dict[tuple[int, str], Alternative] = {}
        for one in sorted(all_alternatives, key=lambda one: (one.half == "attention", -one.size)):
            if not self.missing(list(chosen.values())):
                break
            chosen[one.layer, one.half] = one
        return list(chosen.values())

    def _student(self, chosen: Sequence[Alternative]) -> DecoderSpec:
        return with_alternatives(self.spec, chosen)

    def _costs(self, chosen: Sequence[Alternative]) -> dict[str, float]:
        planned, spec = self.plan(chosen), self._student(chosen)
        return {
            "decode ms": planned.decode_ms.value,
            "first token ms": planned.prefill_ms.value,
            "bytes": planned.total_bytes,
            "parameters": spec.linear_parameters,
        }

    def _bounds(self) -> dict[str, float]:
        rate = self.request.min_tokens_per_second
        bounds: dict[str, float | None] = {
            "decode ms": None if rate is None else 1e3 * self.request.batch / rate,
            "first token ms": self.budget.first_token_ms,
            "bytes": self.plan(()).budget_bytes,
            "parameters": self._max_parameters(),
        }
        return {name: bound for name, bound in bounds.items() if bound is not None}

    def _max_parameters(self) -> float | None:
        limit = self.budget.parameters
        if limit is None:
            return None
        return limit * self.spec.linear_parameters if limit <= 1 else limit


def smallest_student(
    spec: DecoderSpec, all_alternatives: Sequence[Alternative]
) -> list[Alternative]:
    """The smallest alternative of every half; the last layer that attends keeps its attention."""
    smallest = {(one.layer, one.half): one for one in sorted(all_alternatives, reverse=True)}
    last = spec.attention_layers[-1], "attention"
    if last in smallest:
        del smallest[last]
        fewest = min((one for one in all_alternatives if _keeps(one, *last)), default=None)
        smallest |= {} if fewest is None else {last: fewest}
    return sorted(smallest.values())


def _keeps(one: Alternative, layer: int, half: str) -> bool:
    return one.is_trained and (one.layer, one.half) == (layer, half)
