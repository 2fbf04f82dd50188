"""What speculation would gain on a device, from its cost model and a share of accepted tokens.

A run that checks k tokens is taken to cost what a step of k sequences costs: weights are read once,
everything else is done k times (the int8 cache is read for each row on a CPU; GPU kernels read it
once, so that deep caches are estimated too high there). A draft model runs once for each drafted
token. How many are accepted depends on text and draft: `edge-bench --speculation` measures it.
"""

import msgspec

from edgelm.devices.planner.estimate import added_bytes, assistant_plan, estimate, head_plan
from edgelm.devices.profile import Profile
from edgelm.errors import BadInput
from edgelm.planning import Plan, PlanRequest
from edgelm.spec.decoder import DecoderSpec
from edgelm.speculation import SIZES, expected_tokens

LOOKUP, HEAD = "lookup", "head"
# Where none is given: what small drafts of a family reach on text far from and near to their own.
DEFAULT_ACCEPTANCE = (0.4, 0.6, 0.8)
_NEEDED = 1.1  # gain below which the runtime does not draft
_STEPS = 100


class SpeculationGain(msgspec.Struct, frozen=True):
    """For one share of accepted tokens: the best number of drafted ones, and what it gains."""

    acceptance: float
    drafts: int
    tokens_per_run: float
    gain: float
    tokens_per_second: float


class SpeculationPlan(msgspec.Struct, frozen=True):
    """What speculation would gain.

    `run_ratios` are times of runs that check 2, 3, .. tokens, in runs of one. `break_even` is the
    share of accepted tokens from which it gains a tenth; None if none does. `draft_bytes` is what a
    draft model adds to memory.
    """

    draft: str
    run_ratios: dict[int, float]
    draft_ratio: float
    gains: tuple[SpeculationGain, ...]
    break_even: float | None
    draft_bytes: int
    fits: bool

    def table(self) -> str:
        """As text."""
        ratios = ", ".join(f"{size} tokens {ratio:.2f}" for size, ratio in self.run_ratios.items())
        lines = [
            f"speculation with {self.draft} (estimate)",
            f"  checking run, relative to a run of one token: {ratios}",
        ]
        if self.draft_bytes:
            fits = "fits" if self.fits else "does not fit"
            lines.append(
                f"  {self.draft}: {self.draft_ratio:.2f} runs per token, "
                f"{self.draft_bytes / 1e6:.0f} MB more, which {fits}"
            )
        for gain in self.gains:
            lines.append(
                f"  {gain.acceptance:.0%} accepted: {gain.drafts} drafted, "
                f"{gain.tokens_per_run:.2f} tokens per run, {gain.gain:.2f} times as fast, "
                f"{gain.tokens_per_second:.1f} tokens/s"
            )
        needed = "no acceptance" if self.break_even is None else f"{self.break_even:.0%} accepted"
        lines.append(f"  faster from: {needed}")
        return "\n".join(lines)


def speculation_plan(
    spec: DecoderSpec,
    profile: Profile,
    request: PlanRequest,
    draft: DecoderSpec | None,
    *,
    acceptance: float | None = None,
) -> SpeculationPlan:
    """Predict the gain of a draft model, or of prompt lookup.

    Args:
        spec: the model.
        profile: the device.
        request: precision, cache and so on of both models; one sequence.
        draft: the draft model, draft head or assistant; None for prompt lookup, whose drafts cost
            nothing.
        acceptance: share of drafted tokens that are accepted; None: three shares.

    Raises:
        BadInput: a draft of another vocabulary, or several sequences.
        UnknownName, BadInput: as `estimate`.
    """
    if request.batch != 1:
        raise BadInput("speculation is predicted for one sequence; leave out --batch")
    if draft is not None and draft.vocab_size != spec.vocab_size:
        raise BadInput(
            f"the draft model has {draft.vocab_size} tokens, the model {spec.vocab_size}; a draft "
            "model needs the same tokenizer"
        )
    alone = estimate(spec, profile, request)
    single = alone.decode_ms.value
    ratios = {size: _batch(spec, profile, request, size) / single for size in SIZES}
    each, added = 0.0, 0
    if draft is not None:
        drafting = _draft_plan(draft, profile, request, alone.context)
        each = drafting.decode_ms.value / single
        added = added_bytes(draft, drafting, alone.workspace_bytes)
        if draft.assistant is not None:  # the layers that it reads hold all tokens
            both = estimate(spec, profile, msgspec.structs.replace(request, assistant=draft))
            added = both.total_bytes - alone.total_bytes
    shares = DEFAULT_ACCEPTANCE if acceptance is None else (acceptance,)
    return SpeculationPlan(
        draft=LOOKUP if draft is None else _kind(draft),
        run_ratios=ratios,
        draft_ratio=each,
        gains=tuple(_gain(share, ratios, each, single) for share in shares),
        break_even=_break_even(ratios, each, single),
        draft_bytes=added,
        fits=alone.total_bytes + added <= alone.budget_bytes,
    )


def _batch(spec: DecoderSpec, profile: Profile, request: PlanRequest, size: int) -> float:
    batched = msgspec.structs.replace(request, batch=size)
    return estimate(spec, profile, batched).decode_ms.value


def _kind(draft: DecoderSpec) -> str:
    if draft.assistant is not None:
        return "the assistant"
    return "the draft head" if draft.draft_head else "a draft model"


def _draft_plan(draft: DecoderSpec, profile: Profile, request: PlanRequest, context: int) -> Plan:
    if draft.draft_head:
        return head_plan(draft, profile, request, context)
    if draft.assistant is not None:
        return assistant_plan(draft, profile, request, context)
    context = min(context, draft.max_position_embeddings)
    return estimate(draft, profile, msgspec.structs.replace(request, context=context))


def _gain(share: float, ratios: dict[int, float], each: float, single: float) -> SpeculationGain:
    best = SpeculationGain(share, 0, 1.0, 1.0, 1e3 / single)
    for size, ratio in ratios.items():
        drafts = size - 1
        tokens = expected_tokens(share, drafts)
        gain = tokens / (ratio + drafts * each)
        if gain > best.gain:
            best = SpeculationGain(share, drafts, tokens, gain, 1e3 * gain / single)
    return best


def _break_even(ratios: dict[int, float], each: float, single: float) -> float | None:
    shares = (step / _STEPS for step in range(_STEPS + 1))
    return next((one for one in shares if _gain(one, ratios, each, single).gain >= _NEEDED), None)
