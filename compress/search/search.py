"""Architecture search: the largest shapes within a device's budget, ranked by lightweight KD.

Minitron's search (arXiv 2407.14679, section 2.3) with a device's budget instead of a parameter
count: enumerate shapes that the engine has kernels for, keep those that the planner accepts, prune
and score them, distill the finalists briefly, and rank. Scores before training are misleading
between depth and width (depth looks best until about 200 steps), so every kind has a finalist.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import torch

from edgelm.compress.data.packing import PackedTokens
from edgelm.compress.distillation.settings import Distillation
from edgelm.compress.distillation.train import distill
from edgelm.compress.evaluation.held_out import HeldOut
from edgelm.compress.model import Model, gather_full_model
from edgelm.compress.pruning.importance import Importance
from edgelm.compress.pruning.prune import prune
from edgelm.compress.pruning.shape import Shape
from edgelm.compress.run.distributed import is_main_process
from edgelm.compress.search.candidates import Candidate, CostModel
from edgelm.compress.search.proposals import choose_finalists, propose
from edgelm.compress.search.settings import SearchSettings
from edgelm.files.staging import replace_file
from edgelm.quantize.hessians import Hessians

_LOSSES = "losses.json"  # of a finalist, after each round
Report = Callable[[str, Sequence[Candidate]], None]
LayerChoice = Callable[[int], Sequence[int] | None]


def search(
    teacher: Model,
    importance: Importance,
    cost: CostModel,
    data: PackedTokens,
    held_out: torch.Tensor,
    settings: SearchSettings,
    distillation: Callable[[Shape], Distillation],
    folder: Path,
    *,
    layers: LayerChoice = lambda _: None,
    moments: Hessians | None = None,
    report: Report = lambda *_: None,
) -> list[Candidate]:
    """Rank candidates: finalists by divergence after distillation, then the others.

    Args:
        teacher: in any type; candidates are scored in it, and distilled in fp32.
        importance: the teacher's scores.
        cost: device and budget.
        data: to distill on.
        held_out: int64 tokens [B, T] that are not in `data`, to evaluate on.
        settings: of the search.
        distillation: of a finalist of this shape: its losses and its schedule
            (`SearchSettings.schedule`).
        folder: for the finalists' checkpoints; an interrupted search resumes from them.
        layers: which of the teacher's layers to keep, by their number (see `prune`).
        moments: to refit what remains of pruned matrices (see `prune`).
        report: called with the step ("scored" or "distilled") and the table so far.
    """

    def pruned(shape: Shape) -> Model:
        kept = layers(shape.num_hidden_layers)
        return prune(teacher, shape, importance, layers=kept, moments=moments)

    reference = HeldOut(teacher, held_out, shared=True)
    scored = []
    for candidate in propose(cost, settings):
        loss = reference.divergence(pruned(candidate.shape))
        scored.append(msgspec.structs.replace(candidate, pruned=loss))
        report("scored", scored)
    finalists = choose_finalists(scored, settings.finalists)
    others = sorted((one for one in scored if one not in finalists), key=lambda one: one.loss)
    unchanged, before = 0, [one.shape for one in finalists]
    for number in range(settings.kd_rounds if len(finalists) > 1 else 0):
        finalists = [
            _one_round(
                teacher,
                pruned(one.shape),
                one,
                data,
                reference,
                _until(number + 1, settings.kd_rounds, distillation(one.shape)),
                folder,
            )
            for one in finalists
        ]
        finalists.sort(key=lambda one: one.loss)
        report("distilled", [*finalists, *others])
        order = [one.shape for one in finalists]
        unchanged, before = (unchanged + 1 if order == before else 0), order
        if unchanged >= settings.patience and number + 1 >= settings.settled_rounds:
            break
    return [*finalists, *others]


def _until(done: int, rounds: int, schedule: Distillation) -> Distillation:
    """The schedule up to the end of a round."""
    steps = schedule.steps * done // rounds
    return msgspec.structs.replace(schedule, stop_after=steps * schedule.step_tokens)


def _one_round(
    teacher: Model,
    student: Model,
    candidate: Candidate,
    data: PackedTokens,
    held_out: HeldOut,
    settings: Distillation,
    folder: Path,
) -> Candidate:
    folder = folder / "-".join(map(str, candidate.shape.sizes.values()))
    losses = _known_losses(folder)
    done = len(candidate.distilled)
    # An interrupted search finds the checkpoint of its last round, which is past this one.
    if done < len(losses):
        return msgspec.structs.replace(candidate, distilled=losses[: done + 1])
    student = student.float()
    for _ in distill(student, teacher, data, settings, folder):
        pass
    loss = held_out.divergence(gather_full_model(student))
    losses = (*candidate.distilled, loss)
    if is_main_process():
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
