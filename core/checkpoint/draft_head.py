"""The head of a checkpoint that drafts tokens, as a checkpoint of its own.

Qwen3.5 stores it beside the decoder, as `mtp.fc`, `mtp.layers.0`, `mtp.norm` and two norms in front
of `fc`; embedding and output matrix are the model's. Transformers ignores it.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgelm.checkpoint.source import Checkpoint
from edgelm.checkpoint.text_part import DRAFT_HEAD
from edgelm.checkpoint.weights.names import check_stored
from edgelm.checkpoint.weights.values import read_tensor
from edgelm.errors import BadCheckpoint, BadInput
from edgelm.files.json_files import shown
from edgelm.spec.draft_head import draft_head_spec
from edgelm.spec.tensor_names import stored_name
from edgelm.spec.tensor_shapes import EMBEDDING_WEIGHT, HEAD_BIAS, HEAD_WEIGHT, tensor_shapes

if TYPE_CHECKING:
    import torch

    from edgelm.checkpoint.weights.safetensors_header import StoredTensor

_SHARED = (EMBEDDING_WEIGHT, HEAD_WEIGHT, HEAD_BIAS)
_LAYERS = "mtp_num_hidden_layers"


def draft_head(checkpoint: Checkpoint) -> Checkpoint:
    """The draft head of a checkpoint; nothing of it is read yet.

    Raises:
        BadInput: it has none, or one that edgelm cannot export.
        BadCheckpoint: tensors of the head are missing, or of other shapes than its model says.
    """
    if not checkpoint.draft_head:
        raise BadInput(
            f"{checkpoint.name} has no draft head: no tensors named {DRAFT_HEAD}.*, as checkpoints "
            "of Qwen3.5 in safetensors have them; export without the draft head, and a small model "
            "of the family with --draft-for BUNDLE"
        )
    layers = checkpoint.config.get(_LAYERS, 1)
    if layers != 1:
        raise BadInput(
            f"config.json: {_LAYERS} is {shown(layers)}, but only draft heads of 1 layer can be "
            "exported; export without the draft head"
        )
    spec, family = draft_head_spec(checkpoint.spec), checkpoint.spec.family
    own = {
        stored_name(family, f"model.{name}"): tensor
        for name, tensor in checkpoint.draft_head.items()
    }
    shapes = tensor_shapes(spec)
    shared = {stored_name(family, name) for name in _SHARED} & shapes.keys()
    try:
        check_stored(
            checkpoint.path,
            own,
            {name: shape for name, shape in shapes.items() if name not in shared},
        )
    except BadCheckpoint as error:
        raise BadCheckpoint(f"the draft head ({DRAFT_HEAD}.*): {error}") from None
    return replace(
        checkpoint,
        spec=spec,
        shapes=shapes,
        read=_HeadTensors(checkpoint, own),
        files={name: tensor.path for name, tensor in own.items()},
        packed={},
        draft_head={},
        _finite=set(),
        _stamps=checkpoint._stamps,
    )


@dataclass(frozen=True)
class _HeadTensors:
    """Reads the head's own tensors, and those that it shares with its model."""

    model: Checkpoint
    own: "dict[str, StoredTensor]"

    def __call__(self, name: str) -> "torch.Tensor":
        stored = self.own.get(name)
        return self.model.tensor(name) if stored is None else read_tensor(stored)
