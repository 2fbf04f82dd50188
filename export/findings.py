"""What each stage of an export finds out, and all that it depends on."""

import hashlib
from collections.abc import Callable, Collection
from pathlib import Path

import onnxruntime
import torch
import transformers

import edgelm
from edgelm.checkpoint import Checkpoint
from edgelm.devices.kernels import Kernels
from edgelm.export.allocate import Choice, Frontier
from edgelm.export.gate import Judge
from edgelm.export.kept import Kept, key
from edgelm.export.quantizer import Quantizer
from edgelm.export.reference import Reference
from edgelm.export.search import choices_for, offers
from edgelm.export.sensitivity import measure_sensitivity
from edgelm.export.text import Passage
from edgelm.precision import W8A8, Int4, KvType, WeightPrecision


def source_name(checkpoint: Checkpoint, reference: Reference, context: int) -> str:
    """Of a source and the code that runs it."""
    return key(
        edgelm.__version__,
        _code(),
        str(torch.__version__),
        transformers.__version__,
        onnxruntime.__version__,
        checkpoint.sha256(),
        checkpoint.spec,
        checkpoint.config,
        context if reference.depends_on_context else None,
    )


def _code() -> str:
    """Hash of the package's own code that findings come from."""
    package = Path(edgelm.__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*package.glob("*.py"), *package.glob("export/*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def rounding_name(method: str, kinds: Collection[type[WeightPrecision]], kv: KvType) -> str:
    """Of all that is folded into weights before they are rounded, and how they are."""
    return key(method, W8A8 in kinds, Int4 in kinds, kv == "int8")


def judge_of(
    kept: Kept, reference: Reference, passage: Passage, running: Callable[[], None]
) -> Judge:
    """A judge, from the source's final states on a passage; `running` is called before a run."""

    def find() -> dict[str, torch.Tensor]:
        running()
        return {"hidden": Judge.of(reference, passage).hidden}

    found = kept.tensors(f"states {passage.tokens_sha256[:16]}", find)
    return Judge(reference, passage, found["hidden"])


def frontier_of(
    kept: Kept,
    reference: Reference,
    quantizer: Quantizer,
    tokens: torch.Tensor,
    rules: Kernels,
    *,
    group_size: int | None,
    symmetric: bool | None,
    progress: Callable[[int, int], None],
) -> Frontier:
    """The assignments worth trying, from what rounding one group at a time costs on tokens."""
    low = Int4(group_size=32, symmetric=bool(symmetric) or not rules.grouped)
    ranking = key(quantizer.grid(low), tokens.tolist())
    sensitivity = kept.record(
        f"sensitivity {ranking}",
        dict[str, float],
        lambda: measure_sensitivity(reference, quantizer, tokens, low, progress),
    )
    choices = choices_for(rules, group_size=group_size, symmetric=symmetric)
    offered = kept.record(
        f"offered {key(ranking, rules, group_size, symmetric)}",
        dict[str, list[Choice]],
        lambda: offers(quantizer.weights, sensitivity, low, choices),
    )
    return Frontier.of(offered)
