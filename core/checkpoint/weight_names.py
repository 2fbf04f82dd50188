"""A file's tensor names and the decoder's: which is which, what is missing, what is left over.

The rules are those of transformers 5 (`rename_source_key`, `tie_weights`), with one difference:
where transformers warns and continues with random or unused weights, this is an error.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from edgelm.checkpoint.quantized_marks import check_names, check_types
from edgelm.checkpoint.safetensors_header import StoredTensor
from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import shown
from edgelm.spec.tensor_shapes import EMBEDDING_WEIGHT, HEAD_WEIGHT, Shapes

_PREFIX = "model."
_CHUNK = 16 * 1024**2
# What older versions and other programs leave in files, and nobody reads: constants that follow
# from the configuration, and scales of a quantized cache beside weights that are not.
_LEFTOVERS = re.compile(
    r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$"
    r"|(^|\.)position_ids$"
    r"|(self_attn|attn|attention)\.masked_bias$"
    r"|self_attn\.([kv]_proj\.|attn\.)?[kv]_scale$"
)
_MASKS = re.compile(r"(self_attn|attn|attention)\.(bias|causal_mask)$")

Stored = Mapping[str, StoredTensor]


def named_as_hugging_face(folder: Path, stored: Stored, expected: Iterable[str]) -> Stored:
    """The tensors under the names of a causal language model.

    A base model is saved without the prefix `model.`, and read with it.

    Raises:
        BadCheckpoint: a tensor is there under both names.
    """
    known = {*expected, HEAD_WEIGHT}
    named: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        hugging_face = _hugging_face_name(name, known)
        if hugging_face in named:
            raise BadCheckpoint(
                f"{folder} holds {hugging_face} twice, with and without the prefix {_PREFIX!r}, "
                "and which one is the model's is not certain; remove the one that is not"
            )
        named[hugging_face] = tensor
    return named


def head_is_tied(stored: Stored, *, configured: bool) -> bool:
    """Whether the embedding is the head too: if configured, and the file holds no other one.

    A head of its own that equals the embedding is a copy of it.
    """
    head, embedding = stored.get(HEAD_WEIGHT), stored.get(EMBEDDING_WEIGHT)
    if not configured or head is None or embedding is None:
        return configured
    # Compared as bytes: of two types, or of +0 and -0, it is right to read both.
    alike = (head.dtype, head.shape) == (embedding.dtype, embedding.shape)
    return alike and _same_bytes(head, embedding)


def tied_to_embedding(stored: Stored) -> Stored:
    """The tensors of a model whose head is its embedding, under the embedding's name."""
    matrix = stored.get(EMBEDDING_WEIGHT) or stored.get(HEAD_WEIGHT)
    tied = {name: tensor for name, tensor in stored.items() if name != HEAD_WEIGHT}
    return tied if matrix is None else tied | {EMBEDDING_WEIGHT: matrix}


def without_leftovers(stored: Stored) -> Stored:
    """The tensors without constants that nobody reads."""
    return {name: tensor for name, tensor in stored.items() if not _is_leftover(name, tensor)}


def check_stored(path: Path, stored: Stored, expected: Shapes) -> None:
    """Raise BadCheckpoint unless the tensors are the expected ones, as floating-point numbers."""
    check_names(path, sorted(stored.keys() - expected.keys()))
    types = {name: tensor.dtype for name, tensor in stored.items() if name in expected}
    check_types(path, types)
    check_shapes(path, {name: tensor.shape for name, tensor in stored.items()}, expected)


def check_shapes(path: Path, shapes: Shapes, expected: Shapes) -> None:
    """Raise BadCheckpoint if tensors are missing, left over or of another shape."""
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
        hint = f"it holds others, such as {shown(left[0])}; {hint}"
    return BadCheckpoint(
        f"{path} lacks {len(missing)} of {count} tensors, first {missing[0]!r}; {hint}"
    )


def _left_over(path: Path, left: list[str]) -> BadCheckpoint:
    names = ", ".join(shown(name) for name in left[:3]) + (", …" if len(left) > 3 else "")
    if all(name.endswith(".bias") for name in left):
        hint = (
            "config.json switches these biases off, or its architecture has none; if they belong "
            "to the model, set attention_bias or mlp_bias, else remove them"
        )
    else:
        hint = (
            "the model would compute something else without them; is model_type right, and "
            "num_hidden_layers? Remove them only if they are not the model's"
        )
    return BadCheckpoint(
        f"{path} holds {len(left)} unexpected tensors that config.json has no place for: "
        f"{names}; {hint}"
    )
