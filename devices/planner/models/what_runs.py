"""What can run on a device: known models, each in the best precision that works there.

A model of a larger class answers better than one of a smaller class in any precision that passes
its quality gate; within a class, a newer one does, and the precision closest to its source.
"""

import msgspec

from edgelm.devices.planner.models.known_models import KnownModel, known_models
from edgelm.devices.planner.plan import QUALITY, check_request, choices
from edgelm.devices.profile import Profile
from edgelm.errors import BadInput
from edgelm.planning import Plan, PlanRequest


class Candidate(msgspec.Struct, frozen=True):
    """A known model, and the plan of its best precision on the device.

    `plan` is None where the engine has no kernels for the shape: `reason` says why.
    """

    name: str
    source: str
    released: str
    quality_class: str
    parameters: int
    plan: Plan | None
    reason: str = ""

    @property
    def works(self) -> bool:
        """Whether it runs on the device as requested."""
        return self.plan is not None and self.plan.works


def what_runs(profile: Profile, request: PlanRequest) -> list[Candidate]:
    """Every known model on a device: those that work first, the best class before the others.

    Raises:
        UnknownName: an engine, a power mode or a precision that the device does not have.
        BadInput: a value of the request is out of range.
    """
    check_request(request)
    found = [(model, _candidate(model, profile, request)) for model in known_models()]
    return [candidate for _, candidate in sorted(found, key=lambda pair: _rank(*pair))]


def _candidate(model: KnownModel, profile: Profile, request: PlanRequest) -> Candidate:
    spec = model.spec
    context = request.context and min(request.context, spec.max_position_embeddings)
    asked = msgspec.structs.replace(request, context=context)
    plan, reason = None, ""
    try:
        plan = choices(spec, profile, asked)[0]
    except BadInput as error:
        if type(error) is not BadInput:  # a name that is unknown: the request's fault
            raise
        reason = str(error)
    return Candidate(
        model.name,
        model.source,
        model.released,
        model.quality_class,
        spec.parameters,
        plan,
        reason or ("" if plan is None or plan.works else plan.verdict),
    )


def _rank(model: KnownModel, candidate: Candidate) -> tuple[float, ...]:
    month = -int(model.released.replace("-", ""))
    if candidate.plan is None:
        return 2, model.rank, month
    quality = QUALITY.index(candidate.plan.precision)
    return float(not candidate.works), model.rank, month, quality, -model.parameters_m
