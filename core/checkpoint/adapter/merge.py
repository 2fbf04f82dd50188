"""A checkpoint with an adapter merged into its weights, as they are read."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from edgelm.checkpoint.adapter.lora import Lora, values
from edgelm.checkpoint.source import Checkpoint
from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import shown
from edgelm.spec.tensor_names import stored_name
from edgelm.spec.tensor_shapes import EMBEDDING_WEIGHT, HEAD_WEIGHT

if TYPE_CHECKING:
    import torch


def merged(checkpoint: Checkpoint, lora: Lora) -> Checkpoint:
    """The checkpoint with an adapter's changes in fp32, nothing of it read yet.

    A head that is tied to the embedding gets weights of its own where the adapter changes only one
    of the two, as in PEFT.

    Raises:
        BadCheckpoint: the adapter changes tensors that the checkpoint does not have, or of another
            shape: it belongs to another model.
    """
    changed = {*lora.factors, *lora.replaced}
    base = checkpoint
    tied = checkpoint.spec.tie_word_embeddings and checkpoint.spec.has_head
    if tied and changed & {_embedding(base), HEAD_WEIGHT}:
        checkpoint = _untied(checkpoint)
    _check(checkpoint, lora)

    return replace(
        checkpoint,
        read=_Merged(base, lora),
        weight_files=(*checkpoint.weight_files, lora.path),
        # Several files make a tensor now.
        files={name: path for name, path in checkpoint.files.items() if name not in changed},
        packed={},
        adapter=lora.folder.name,
        _finite=set(),
        _stamps={},
    )


@dataclass(frozen=True)
class _Merged:
    """Reads the merged tensors; of those that the adapter leaves alone, also single rows."""

    base: Checkpoint
    lora: Lora

    def __call__(self, name: str) -> "torch.Tensor":
        lora = self.lora
        if name in lora.replaced:
            weight = values(lora.replaced[name])
        else:
            weight = self.base.tensor(self._own(name))
        return lora.factors[name].apply(weight) if name in lora.factors else weight

    def rows(self, name: str, rows: "torch.Tensor") -> "torch.Tensor":
        return self.base.rows(self._own(name), rows)

    def has_rows(self, name: str) -> bool:
        changed = name in self.lora.factors or name in self.lora.replaced
        return not changed and self.base.reads_rows(self._own(name))

    def _own(self, name: str) -> str:
        tied = name == HEAD_WEIGHT and not self.base.has(name)
        return _embedding(self.base) if tied else name


def _embedding(checkpoint: Checkpoint) -> str:
    return stored_name(checkpoint.spec.family, EMBEDDING_WEIGHT)


def _untied(checkpoint: Checkpoint) -> Checkpoint:
    spec = msgspec.structs.replace(checkpoint.spec, tie_word_embeddings=False)
    shapes = checkpoint.shapes | {HEAD_WEIGHT: checkpoint.shapes[_embedding(checkpoint)]}
    config = checkpoint.config | {"tie_word_embeddings": False}
    return replace(checkpoint, spec=spec, shapes=shapes, config=config, _finite=set(), _stamps={})


def _check(checkpoint: Checkpoint, lora: Lora) -> None:
    shapes = {name: factors.shape for name, factors in lora.factors.items()}
    shapes |= {name: one.shape for name, one in lora.replaced.items()}  # type: ignore[misc]
    for name, shape in shapes.items():
        expected = checkpoint.shapes.get(name)
        if expected == shape:
            continue
        was = f"It was trained on {shown(lora.settings.base)}" if lora.settings.base else ""
        has = "has no such tensor" if expected is None else f"has shape {list(expected)}"
        raise BadCheckpoint(
            f"{lora.folder} does not belong to {checkpoint.name}: it changes {name} "
            f"{list(shape)}, of which the model {has}. {was}".strip().rstrip(".")
        )
