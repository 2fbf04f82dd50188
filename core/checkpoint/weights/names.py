"""Match the tensor names in a file with those of the decoder.

The rules are those of transformers 5 (`rename_source_key`, `tie_weights`), with one difference:
missing and unexpected tensors are errors, where transformers warns and continues.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from edgelm.checkpoint.refused_formats import check_names, check_types
from edgelm.checkpoint.weights.safetensors_header import StoredTensor
from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import shown
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.tensor_shapes import EMBEDDING_WEIGHT, HEAD_WEIGHT, Shapes

_PREFIX = "model."
_OLDER_PREFIX = "backbone."
_CHUNK = 16 * 1024**2
# Unused tensors that older versions and other programs write: constants that follow from the
# configuration, and scales of a quantized cache.
_LEFTOVERS = re.compile(
    r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$"
    r"|(^|\.)position_ids$"
    r"|(self_attn|attn|attention)\.masked_bias$"
    r"|self_attn\.([kv]_proj\.|attn\.)?[kv]_scale$"
)
_KEYS = re.compile(r"^(?:model\.)?layers\.(\d+)\.self_attn\.(?:k_proj|v_proj|k_norm|v_norm)\.")
_MASKS = re.compile(r"(self_attn|attn|attention)\.(bias|causal_mask)$")

Stored = Mapping[str, StoredTensor]


def named_as_hugging_face(folder: Path, stored: Stored, expected: Iterable[str]) -> Stored:
    """The tensors under the names of a causal language model.

    A base model is saved without the prefix `model.`, and read with it. Nemotron-H's checkpoints
    have the prefix `backbone.` in its place.

    Raises:
        BadCheckpoint: a tensor exists under both names.
    """
    known = {*expected, HEAD_WEIGHT}
    named: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        hugging_face = _hugging_face_name(name, known)
        if hugging_face in named:
            raise BadCheckpoint(
                f"{folder} holds {hugging_face} twice, with and without the prefix {_PREFIX!r}; "
                "keep only the one that belongs to the model"
            )
        named[hugging_face] = tensor
    return named


def head_is_tied(stored: Stored, *, configured: bool) -> bool:
    """Whether the embedding is also the head: if configured, and the file has no different head.

    A stored head that equals the embedding is a copy of it.
    """
    head, embedding = stored.get(HEAD_WEIGHT), stored.get(EMBEDDING_WEIGHT)
    if not configured or head is None or embedding is None:
        return configured
    # Compared as bytes: tensors of different types, or with +0 and -0, are read as two.
    alike = (head.dtype, head.shape) == (embedding.dtype, embedding.shape)
    return alike and _same_bytes(head, embedding)


def tied_to_embedding(stored: Stored) -> Stored:
    """The tensors of a model whose head is its embedding, under the embedding's name."""
    matrix = stored.get(EMBEDDING_WEIGHT) or stored.get(HEAD_WEIGHT)
    tied = {name: tensor for name, tensor in stored.items() if name != HEAD_WEIGHT}
    return tied if matrix is None else tied | {EMBEDDING_WEIGHT: matrix}


def without_leftovers(stored: Stored, spec: DecoderSpec) -> Stored:
    """The tensors without unused ones, such as keys of layers that share another's (Gemma 4)."""
    shared = {str(at) for at, one in enumerate(spec.layers) if one.shares_kv_of is not None}
    return {
        name: tensor
        for name, tensor in stored.items()
        if not _is_leftover(name, tensor)
        and not ((found := _KEYS.match(name)) and found[1] in shared)
    }


def check_stored(path: Path, stored: Stored, expected: Shapes) -> None:
    """Raise BadCheckpoint unless these are the expected tensors, in floating point."""
    check_names(path, sorted(stored.keys() - expected.keys()))
    types = {name: tensor.dtype for name, tensor in stored.items() if name in expected}
    check_types(path, types)
    check_shapes(path, {name: tensor.shape for name, tensor in stored.items()}, expected)


def check_shapes(path: Path, shapes: Shapes, expected: Shapes) -> None:
    """Raise BadCheckpoint if tensors are missing, unexpected or of the wrong shape."""
    left = sorted(shapes.keys() - expected.keys())
    missing = [name for name in expected if name not in shapes]
    if missing:
        raise _lacks(path, missing, left, len(expected))
    if left:
        raise _left_over(path, left)
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise BadCheckpoint(
                f"{path}: {name} has shape {list(shapes[name])}, config.json "
                f"implies {list(shape)}; is config.json from another model?"
            )


def _is_leftover(name: str, tensor: StoredTensor) -> bool:
    # A causal mask is [1, 1, positions, positions]; a bias of the same name would be a vector.
    return bool(_LEFTOVERS.search(name)) or (len(tensor.shape) == 4 and bool(_MASKS.search(name)))


def _hugging_face_name(name: str, known: set[str]) -> str:
    if name.startswith(_OLDER_PREFIX) and _PREFIX + name.removeprefix(_OLDER_PREFIX) in known:
        return _PREFIX + name.removeprefix(_OLDER_PREFIX)
    if name.startswith(_PREFIX) and name.removeprefix(_PREFIX) in known:
        return name.removeprefix(_PREFIX)
    return _PREFIX + name if _PREFIX + name in known else name


def _same_bytes(one: StoredTensor, other: StoredTensor) -> bool:
    if one.end - one.start != other.end - other.start:
        return False
    with one.path.open("rb") as first, other.path.open("rb") as second:
        first.seek(one.start)
        second.seek(other.start)
        left = one.end - one.start
        while left:
            size = min(left, _CHUNK)
            data = first.read(size)
            if not data or data != second.read(size):
                return False
            left -= len(data)
    return True


def _lacks(path: Path, missing: list[str], left: list[str], count: int) -> BadCheckpoint:
    hint = "is a shard missing, or config.json from another model?"
    if missing == [HEAD_WEIGHT]:
        hint = (
            "config.json does not tie it to the embedding; is tie_word_embeddings right, or is "
            "this a base model without a head?"
        )
    elif left:
        hint = f"it has others, such as {shown(left[0])}; {hint}"
    return BadCheckpoint(
        f"{path} lacks {len(missing)} of {count} tensors, first {missing[0]!r}; {hint}"
    )


def _left_over(path: Path, left: list[str]) -> BadCheckpoint:
    names = ", ".join(shown(name) for name in left[:3]) + (", …" if len(left) > 3 else "")
    if all(name.endswith(".bias") for name in left):
        hint = (
            "config.json disables these biases, or its architecture has none; if they belong to "
            "the model, set attention_bias or mlp_bias, otherwise remove them"
        )
    else:
        hint = (
            "without them the model computes something else; check model_type and "
            "num_hidden_layers, and remove the tensors only if they do not belong to the model"
        )
    return BadCheckpoint(
        f"{path} has {len(left)} tensors that do not fit config.json: {names}; {hint}"
    )
