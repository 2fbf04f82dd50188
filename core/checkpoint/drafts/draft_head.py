"""The head of a checkpoint that drafts tokens, as a checkpoint of its own.

Qwen3.5 stores it beside the decoder, as `mtp.fc`, `mtp.layers.0`, `mtp.norm` and two norms in front
of `fc`; embedding and output matrix are the model's. Transformers ignores it.
"""

from dataclasses import replace

from edgelm.checkpoint.source import Checkpoint
from edgelm.checkpoint.text_part import DRAFT_HEAD
from edgelm.checkpoint.weights.folder_tensors import FolderTensors
from edgelm.checkpoint.weights.names import check_stored
from edgelm.errors import BadCheckpoint, BadInput
from edgelm.files.json_files import shown
from edgelm.spec.draft_head import draft_head_spec
from edgelm.spec.tensor_names import stored_name
from edgelm.spec.tensor_shapes import tensor_shapes

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
    try:
        check_stored(checkpoint.path, own, shapes)
    except BadCheckpoint as error:
        raise BadCheckpoint(f"the draft head ({DRAFT_HEAD}.*): {error}") from None
    return replace(
        checkpoint,
        spec=spec,
        shapes=shapes,
        read=FolderTensors(spec, own, {}),
        files={name: tensor.path for name, tensor in own.items()},
        packed={},
        draft_head={},
        _finite=set(),
        _stamps=checkpoint._stamps,
    )
