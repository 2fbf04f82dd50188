"""The plan with a wider cache, for a model that an 8-bit one takes past its gate."""

import msgspec

from edgelm.devices.planner.plan import plan as make_plan
from edgelm.devices.profile import load_profile
from edgelm.errors import BadInput, DoesNotFit
from edgelm.planning import Plan, PlanRequest
from edgelm.quantize.precision import EIGHT_BIT_KV
from edgelm.spec.decoder import DecoderSpec


def with_wider_cache(spec: DecoderSpec, plan: Plan, asked: PlanRequest) -> Plan | None:
    """The same plan with the engine's widest cache.

    None where the request names a cache type, where the cache is not one of 8 bits, or where the
    wider one does not fit on the device.
    """
    if asked.kv is not None or plan.kv not in EIGHT_BIT_KV:
        return None
    profile = load_profile(plan.target)
    wider = profile.engine(plan.engine).kv[0]
    request = msgspec.structs.replace(asked, kv=wider, context=plan.context)
    try:
        widened = make_plan(spec, profile, request)
    except (BadInput, DoesNotFit):
        return None
    return widened if widened.fits else None
