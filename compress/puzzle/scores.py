"""What every alternative costs: the KL of the teacher with it alone from the teacher itself."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from edgelm.checkpoint.own_modules import NoAttention, NoMlp, half_name, replace_module
from edgelm.compress.evaluation.held_out import HeldOut
from edgelm.compress.model import Model
from edgelm.compress.puzzle.alternatives import Alternative
from edgelm.compress.puzzle.library import read_half
from edgelm.compress.run.distributed import process_index, sum_over_processes, world_size
from edgelm.errors import BadInput
from edgelm.spec.decoder import DecoderSpec

_PARTIAL = "scores-{}.jsonl"
_SETTINGS = {"mlp": "mlp_ratios", "attention": "kv_heads"}


def score_alternatives(
    teacher: Model,
    spec: DecoderSpec,
    all_alternatives: Sequence[Alternative],
    library: Path,
    rows: torch.Tensor,
    folder: Path,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[float]:
    """The divergence that each alternative causes, in nats per token.

    Every process scores a part of them and has to call this; what an interrupted call scored is
    read from `folder`.

    Args:
        teacher: in any type; unchanged afterwards.
        spec: the teacher's.
        all_alternatives: to score.
        library: folder of the trained halves.
        rows: held-out tokens, int64 [B, T].
        folder: for the scores so far, one file for each process.
        progress: called with the number of alternatives scored, and of all, by this process.
    """
    held_out = HeldOut(teacher, rows)
    known = _known(folder)
    own = range(process_index(), len(all_alternatives), world_size())
    found = [0.0] * len(all_alternatives)
    with (folder / _PARTIAL.format(process_index())).open("a", encoding="utf-8") as file:
        for count, index in enumerate(own, 1):
            one = all_alternatives[index]
            if (score := known.get(one.name)) is None:
                with replaced(teacher, spec, one, library):
                    score = held_out.divergence(teacher)
                file.write(json.dumps({"name": one.name, "kl": score}) + "\n")
                file.flush()
            found[index] = score
            progress(count, len(own))
    return sum_over_processes(found)


@contextmanager
def replaced(
    teacher: Model, spec: DecoderSpec, alternative: Alternative, library: Path
) -> Iterator[None]:
    """Within the context, one half of a layer is the alternative."""
    name = half_name(spec, alternative.layer, alternative.half)
    before = teacher.get_submodule(name)
    replace_module(teacher, name, _module(teacher, spec, alternative, library))
    try:
        yield
    finally:
        replace_module(teacher, name, before)


def _module(
    teacher: Model, spec: DecoderSpec, alternative: Alternative, library: Path
) -> nn.Module:
    if not alternative.size:
        mlp = alternative.half == "mlp"
        return NoMlp() if mlp else NoAttention(alternative.layer)
    return read_half(teacher, spec, library, alternative).to(teacher.device, teacher.dtype)


def _known(folder: Path) -> dict[str, float]:
    """Scores of an earlier call; a killed one may leave a partial line."""
    known = {}
    for path in folder.glob(_PARTIAL.format("*")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                known[str(row["name"])] = float(row["kl"])
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
    return known


def check_finite(all_alternatives: Sequence[Alternative], scores: Sequence[float]) -> None:
    """Raise BadInput for a score that is not a number, which no choice can be based on."""
    for one, score in zip(all_alternatives, scores, strict=True):
        if not abs(score) < float("inf"):
            raise BadInput(
                f"alternative {one.name} of [puzzle] has KL {score:g} from the teacher; lower the "
                f"learning rate, or leave its size out of {_SETTINGS[one.half]}"
            )
