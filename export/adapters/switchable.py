"""Adapters that stay apart from the weights: which the graph can hold, and what they change."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgelm.bundle.records.adapters import NAME
from edgelm.checkpoint.adapter.lora import Factors, Lora, read_lora
from edgelm.checkpoint.adapter.merge import merged
from edgelm.checkpoint.source import Checkpoint
from edgelm.devices.tensorrt_versions import engine_family
from edgelm.errors import BadCheckpoint, BadInput
from edgelm.files.json_files import shown
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.groups import HEAD, TABLES, experts_in, groups, tensor_names
from edgelm.spec.tensor_shapes import HEAD_WEIGHT

ENGINE = "onnxruntime"
_MERGE = "merge it instead: --adapter DIR without --switchable"


@dataclass(frozen=True)
class SwitchableAdapter:
    """An adapter of a bundle, chosen per request.

    groups: those that it changes, in order of execution.
    """

    name: str
    lora: Lora
    groups: tuple[str, ...]


def check_engine(engine: str) -> None:
    """Raise BadInput for an engine whose graphs have no inputs for adapters."""
    if engine_family(engine) != ENGINE:
        raise BadInput(
            f"adapters cannot be switched on {engine}: only ONNX Runtime on a CPU ({ENGINE}) binds "
            "them per request; merge one instead: --adapter DIR without --switchable"
        )


def check_names(names: Sequence[str]) -> None:
    """Raise BadInput for names that cannot be those of files and models, or that are equal."""
    for name in names:
        if not re.match(NAME, name):
            raise BadInput(
                f"the adapter name {shown(name)} cannot be used: expected at most 64 letters, "
                "digits, '.', '_' and '-', beginning with a letter or digit"
            )
    for name, count in Counter(name.lower() for name in names).items():
        if count > 1:
            raise BadInput(
                f"{count} adapters are named {name} (upper and lower case are the same here); "
                "expected a different name for each"
            )


def read_switchable(
    checkpoint: Checkpoint, folders: Mapping[str, Path]
) -> tuple[SwitchableAdapter, ...]:
    """Read adapters of a checkpoint; no weights of either are read yet.

    Raises:
        BadInput: a name that cannot be used, or an embedding model.
        BadCheckpoint: an adapter that is damaged, of another model, or not a sum that the graph can
            add.
    """
    check_names(list(folders))
    if folders and checkpoint.embedding is not None:
        raise BadInput(f"adapters of an embedding model cannot be switched; {_MERGE}")
    found = []
    for name, folder in folders.items():
        lora = read_lora(folder)
        merged(checkpoint, lora)  # checks that it belongs to the checkpoint
        found.append(SwitchableAdapter(name, lora, _groups(checkpoint.spec, lora)))
    return tuple(found)


def changed_names(spec: DecoderSpec, group: str) -> list[str]:
    """The tensors of a group, in order of rows, under the names by which adapters change them."""
    # An adapter of a head that is tied to the embedding changes the head alone, as in PEFT.
    return [HEAD_WEIGHT] if group == HEAD else tensor_names(spec, group)


def _groups(spec: DecoderSpec, lora: Lora) -> tuple[str, ...]:
    if lora.replaced:
        raise _refused(lora, f"it replaces {min(lora.replaced)} (modules_to_save, or a bias)")
    for name, factors in lora.factors.items():
        _check_factors(lora, name, factors)
    left, found = set(lora.factors), []
    for group in groups(spec):
        names = set(changed_names(spec, group)) & left
        if not names:
            continue
        if group in TABLES or experts_in(spec, group):
            raise _refused(lora, f"it changes {min(names)}, an embedding or experts")
        left -= names
        found.append(group)
    if left:
        raise _refused(lora, f"it changes {min(left)}, which is in no matrix product")
    return tuple(found)


def _check_factors(lora: Lora, name: str, factors: Factors) -> None:
    if factors.magnitude is not None:
        raise _refused(lora, f"it is a DoRA: the scale of {name} depends on the merged weights")
    if factors.embedding:
        raise _refused(lora, f"it changes the embedding {name}, whose rows are looked up")


def _refused(lora: Lora, why: str) -> BadCheckpoint:
    return BadCheckpoint(f"{lora.folder} cannot be switched at run time: {why}; {_MERGE}")
