"""What the planner predicts for a bundle on its target, to compare with what was measured."""

from collections import Counter
from collections.abc import Sequence

from edgelm.bench.report.records import Expectation, Result
from edgelm.bench.report.selection import test_of, typical_decode, typical_prompt
from edgelm.bundle import Manifest
from edgelm.devices.planner.plan import plan
from edgelm.devices.profile import load_profile
from edgelm.errors import EdgeLMError
from edgelm.planning import PlanRequest
from edgelm.quantize.precision import GROUP_SIZES, Int4, Int8, WeightPrecision, describe


def expectation(manifest: Manifest, results: Sequence[Result]) -> Expectation | None:
    """Plan the tests that the verdict is about.

    None without such tests, or where this version knows no such target, engine or precision.
    """
    prompt, decode = typical_prompt(list(results)), typical_decode(list(results))
    tokens = test_of(prompt).tokens if prompt else 0
    depth = test_of(decode).depth if decode else 0
    try:
        profile = load_profile(manifest.target)
        # A plan decodes at the end of its prompt.
        before, after = (
            plan(manifest.spec, profile, _request(manifest, max(1, length)))
            for length in (tokens, depth)
        )
    except EdgeLMError:
        return None
    return Expectation(
        prompt=before.prompt,
        first_token_ms=before.prefill_ms,
        depth=depth,
        tokens_per_second=after.tokens_per_second,
        memory_bytes=after.total_bytes,
        bandwidth_gb_s=profile.mode(after.power_mode).bandwidth_gb_s.value,
        binds=after.binds,
        basis=after.basis,
    )


def _request(manifest: Manifest, prompt: int) -> PlanRequest:
    kinds = Counter(
        precision for group, precision in manifest.precision.items() if group != "embedding"
    )
    names = {describe(precision).split()[0] for precision in kinds}
    usual = max(kinds, key=lambda precision: kinds[precision])
    return PlanRequest(
        precision=names.pop() if len(names) == 1 else "auto",
        kv=manifest.kv,
        context=manifest.limits.context,
        group_size=_group_size(usual) if len(kinds) == 1 else None,
        engine=manifest.engine.name,
        prompt=prompt,
    )


def _group_size(precision: WeightPrecision) -> int | None:
    """The group size where the planner takes one."""
    if isinstance(precision, Int4 | Int8) and precision.group_size in GROUP_SIZES:
        return precision.group_size
    return None
