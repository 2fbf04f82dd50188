"""Which shape: the largest ones that a device's budget leaves, ranked by a short distillation.

Minitron's search (arXiv 2407.14679, section 2.3) with a device instead of a parameter count:
enumerate shapes that the engine has kernels for, keep those that the planner accepts, prune and
score them, distil the finalists a little, and rank. Scores before any training mislead between
depth and width (depth looks best until about 200 steps), so the finalists are of every kind.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import torch

from edgelm.compress.data.packing import PackedTokens
from edgelm.compress.distillation.train import Distillation, distill
from edgelm.compress.evaluation.held_out import HeldOut
from edgelm.compress.model import Model, whole
from edgelm.compress.pruning.importance import Importance
from edgelm.compress.pruning.prune import prune
from edgelm.compress.pruning.shape import Shape
from edgelm.compress.ranges import Count, CountOrZero, Share
from edgelm.compress.run.distributed import is_first
from edgelm.devices.kernels import kernels_of
from edgelm.devices.planner.plan import plan
from edgelm.devices.profile import Profile
from edgelm.errors import BadInput, DoesNotFit
from edgelm.files.staging import replace_file
from edgelm.planning import PlanRequest
from edgelm.spec.decoder import DecoderSpec

_LOSSES = "losses.json"  # of a finalist's rounds


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the student may cost; None is no limit.

    parameters: outside the embeddings, as a share of the teacher's, or a number above one.
    request: what is asked of the device: precision, context, prompt, memory, tokens per second.
    first_token_ms: after a prompt of `request.prompt` tokens.
    """

    parameters: float | None = None
    first_token_ms: float | None = None
    request: PlanRequest = PlanRequest()


class Candidate(msgspec.Struct, frozen=True):
    """A shape and what is known of it: predicted costs, then losses as they are measured.

    parameters: outside the embeddings. pruned: divergence from the teacher on held-out rows, in
    nats a token, before any training; distilled: after each round of the short distillation.
    """

    shape: Shape
    kind: str
    parameters: int
    tokens_per_second: float
    first_token_ms: float
    memory_bytes: int
    missing: tuple[str, ...] = ()
    pruned: float | None = None
    distilled: tuple[float, ...] = ()

    @property
    def loss(self) -> float:
        """The latest divergence."""
        if self.distilled:
            return self.distilled[-1]
        return float("inf") if self.pruned is None else self.pruned


class SearchSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How wide and how long to search.

    scored: candidates that are pruned and scored without training, spread over all kinds.
    finalists: of them, those that are distilled. rounds of `round_tokens` each, fewer if the
    ranks have not moved for `patience` rounds. least: of any size, as a share of the teacher's.
    """

    scored: Count = 24
    finalists: Count = 4
    rounds: CountOrZero = 6
    round_tokens: Count = 50_000
    patience: Count = 2
    held_out_rows: Count = 16
    least: Share = 0.4


class Cost:
    """What the planner says of shapes of one decoder on one device."""

    def __init__(self, spec: DecoderSpec, profile: Profile, budget: Budget) -> None:
        self.spec, self.profile, self.budget = spec, profile, budget
        self.kernels = kernels_of(profile.engine(budget.request.engine).name)

    def __call__(self, shape: Shape) -> Candidate:
        """Predicted costs; `missing` says what the budget does not allow."""
        spec = shape.applied_to(self.spec)
        context = self.budget.request.context or min(4096, spec.max_position_embeddings)
        request = msgspec.structs.replace(self.budget.request, context=context)
        planned = plan(spec, self.profile, request)
        missing = list(planned.missing)
        first = planned.prefill_ms.value
        if self.budget.first_token_ms is not None and first > self.budget.first_token_ms:
            missing.append(f"first token {first:.0f} ms, {self.budget.first_token_ms:.0f} asked")
        most = self._most_parameters()
        if spec.linear_parameters > most:
            missing.append(
                f"{spec.linear_parameters / 1e6:.1f} M parameters, {most / 1e6:.1f} M asked"
            )
        return Candidate(
            shape,
            kind_of(shape, self.spec),
            spec.linear_parameters,
            planned.tokens_per_second.value,
            first,
            planned.total_bytes,
            tuple(missing),
        )

    def _most_parameters(self) -> float:
        asked = self.budget.parameters
        if asked is None:
            return float("inf")
        return asked * self.spec.linear_parameters if asked <= 1 else asked

    def check_kernels(self, shape: Shape) -> None:
        """Raise BadInput if the device's engine has no int4 kernels for a shape."""
        multiple = self.kernels.width_multiple
        widths = {
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_attention_heads * head_dim": shape.num_attention_heads * self.spec.head_dim,
        }
        for name, width in widths.items():
            if width % multiple:
                raise BadInput(
                    f"illegal shape for {self.kernels.engine}: {name} {width} is not a multiple of "
                    f"{multiple}, which its int4 kernels need; take "
                    f"{width // multiple * multiple} or {-(-width // multiple) * multiple}"
                )


def kind_of(shape: Shape, spec: DecoderSpec) -> str:
    """Which axes are cut: `depth`, `width`, `depth and width`, or `whole`."""
    full = Shape.of(spec)
    depth = shape.num_hidden_layers < full.num_hidden_layers
    width = msgspec.structs.replace(shape, num_hidden_layers=full.num_hidden_layers) != full
    named = [name for name, cut in (("depth", depth), ("width", width)) if cut]
    return " and ".join(named) or "whole"


def enumerate_shapes(spec: DecoderSpec, multiple: int, least: float) -> Iterator[Shape]:
    """All shapes on a grid of sizes that kernels take, from `least` of each size to the whole.

    Widths go in steps of at most 16 to the whole width and on multiples of 64, or of what the
    engine needs if that is more.
    """
    full = Shape.of(spec)
    groups = full.num_key_value_heads
    for layers in range(
        full.num_hidden_layers, max(1, round(full.num_hidden_layers * least)) - 1, -1
    ):
        for hidden in _widths(full.hidden_size, multiple, least):
            for ffn in _widths(full.intermediate_size, multiple, least):
                for per_group in range(full.heads_per_group, 0, -1):
                    heads = per_group * groups
                    small = heads < least * full.num_attention_heads
                    if small or heads * spec.head_dim % multiple:
                        continue
                    yield Shape(layers, hidden, ffn, heads, groups)


def _widths(full: int, multiple: int, least: float) -> list[int]:
    step = multiple
    while step < 64 and full >= 8 * 2 * step:
        step *= 2
    while full > 16 * step:
        step *= 2
    whole = [full] if full % multiple == 0 else []
    return [*whole, *range((full - 1) // step * step, int(full * least) - 1, -step)]


def largest_within(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Accepted candidates that no other accepted one exceeds in every size."""
    accepted = [candidate for candidate in candidates if not candidate.missing]
    sizes = torch.tensor([msgspec.structs.astuple(one.shape) for one in accepted])
    return [
        one
        for index, one in enumerate(accepted)
        if not ((sizes >= sizes[index]).all(1) & (sizes > sizes[index]).any(1)).any()
    ]


def propose(cost: Cost, settings: SearchSettings) -> list[Candidate]:
    """The largest shapes within the budget, at most `scored`, spread over kinds and sizes.

    Raises:
        DoesNotFit: no shape meets the budget; names the nearest and what it lacks.
    """
    shapes = enumerate_shapes(cost.spec, cost.kernels.width_multiple, settings.least)
    candidates = [cost(shape) for shape in shapes]
    if not candidates:
        raise DoesNotFit(
            f"no shape down to {settings.least:.0%} of the model has widths that are multiples of "
            f"{cost.kernels.width_multiple}, which {cost.kernels.engine} needs for int4; lower "
            "`least` or take another engine"
        )
    largest = largest_within(candidates)
    if not largest:
        nearest = min(candidates, key=lambda one: (len(one.missing), one.parameters))
        raise DoesNotFit(
            f"no shape down to {settings.least:.0%} of the model meets the budget on "
            f"{cost.profile.name}; the nearest, {nearest.shape}, lacks: "
            f"{'; '.join(nearest.missing)}. Ask for less, take a smaller teacher or another "
            "precision"
        )
    kinds: dict[str, list[Candidate]] = {}
    for candidate in sorted(largest, key=lambda one: (-one.parameters, one.shape)):
        kinds.setdefault(candidate.kind, []).append(candidate)
    share = -(-settings.scored // len(kinds))
    chosen = [one for each in kinds.values() for one in _spread(each, share)]
    return chosen[: settings.scored]


def _spread(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    if len(candidates) <= count:
        return list(candidates)
    return [candidates[index * len(candidates) // count] for index in range(count)]


def choose_finalists(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """The best of each kind by score before training, then the best of the rest."""
    ranked = sorted(candidates, key=lambda one: one.loss)
    first = {candidate.kind: candidate for candidate in reversed(ranked)}
    chosen = sorted(first.values(), key=lambda one: one.loss)
    chosen += [one for one in ranked if one not in chosen]
    return chosen[:count]


Report = Callable[[str, Sequence[Candidate]], None]
LayerChoice = Callable[[int], Sequence[int] | None]


def search(
    teacher: Model,
    importance: Importance,
    cost: Cost,
    data: PackedTokens,
    held_out: torch.Tensor,
    settings: SearchSettings,
    distillation: Distillation,
    folder: Path,
    *,
    layers: LayerChoice = lambda _: None,
    report: Report = lambda *_: None,
) -> list[Candidate]:
    """Candidates, best first: finalists by divergence after distillation, then the others.

    Args:
        teacher: in any type; candidates are scored in it, and distilled in fp32.
        importance: its scores.
        cost: device and budget.
        data: to distil on.
        held_out: int64 tokens [B, T] apart from it, to judge on.
        settings: of the search.
        distillation: of the finalists; its schedule is that of the whole run to come, of which
            the search sees the beginning.
        folder: for the finalists' checkpoints; a search that was killed goes on from them.
        layers: which layers to keep of the teacher's, by their number (see `prune`).
        report: called with what was done and the table so far.
    """

    def cut(shape: Shape) -> Model:
        return prune(teacher, shape, importance, layers=layers(shape.num_hidden_layers))

    judge = HeldOut(teacher, held_out)
    scored = []
    for candidate in propose(cost, settings):
        student = cut(candidate.shape)
        loss = judge.divergence(student)
        scored.append(msgspec.structs.replace(candidate, pruned=loss))
        report("scored", scored)
    finalists = choose_finalists(scored, settings.finalists)
    others = sorted((one for one in scored if one not in finalists), key=lambda one: one.loss)
    settled, before = 0, [one.shape for one in finalists]
    for number in range(settings.rounds if len(finalists) > 1 else 0):
        stop = (number + 1) * settings.round_tokens
        finalists = [
            _one_round(teacher, cut(one.shape), one, data, judge, distillation, stop, folder)
            for one in finalists
        ]
        finalists.sort(key=lambda one: one.loss)
        report("distilled", [*finalists, *others])
        order = [one.shape for one in finalists]
        settled, before = (settled + 1 if order == before else 0), order
        if settled >= settings.patience:
            break
    return [*finalists, *others]


def _one_round(
    teacher: Model,
    student: Model,
    candidate: Candidate,
    data: PackedTokens,
    judge: HeldOut,
    distillation: Distillation,
    stop: int,
    folder: Path,
) -> Candidate:
    folder = folder / "-".join(map(str, msgspec.structs.astuple(candidate.shape)))
    losses = _known_losses(folder)
    done = len(candidate.distilled)
    # A search that was killed finds the checkpoint of its last round, which is past this one.
    if done < len(losses):
        return msgspec.structs.replace(candidate, distilled=losses[: done + 1])
    student = student.float()
    settings = msgspec.structs.replace(distillation, stop_after=stop)
    for _ in distill(student, teacher, data, settings, folder):
        pass
    loss = judge.divergence(whole(student))
    losses = (*candidate.distilled, loss)
    if is_first():
        replace_file(folder / _LOSSES, msgspec.json.encode((losses, _sha256_of(losses))))
    return msgspec.structs.replace(candidate, distilled=losses)


def _known_losses(folder: Path) -> tuple[float, ...]:
    path = folder / _LOSSES
    try:
        losses, sha256 = msgspec.json.decode(path.read_bytes(), type=tuple[tuple[float, ...], str])
    except (OSError, ValueError, RecursionError):
        return ()
    return losses if sha256 == _sha256_of(losses) else ()


def _sha256_of(losses: tuple[float, ...]) -> str:
    return hashlib.sha256(msgspec.json.encode(losses)).hexdigest()


def table(candidates: Sequence[Candidate]) -> str:
    """Every candidate with its predicted speed, memory and quality, for people."""
    head = f"{'shape':<52} {'M':>6} {'tok/s':>7} {'TTFT ms':>8} {'MB':>7} {'pruned':>7} distilled"
    lines = [
        f"{one.shape!s:<52} {one.parameters / 1e6:>6.1f} {one.tokens_per_second:>7.1f} "
        f"{one.first_token_ms:>8.0f} {one.memory_bytes / 1e6:>7.0f} "
        f"{'-' if one.pruned is None else format(one.pruned, '.3f'):>7} "
        f"{' '.join(format(loss, '.3f') for loss in one.distilled) or '-'}"
        for one in candidates
    ]
    return "\n".join([head, *lines])
