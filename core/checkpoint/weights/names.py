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
from edgelm.spec.families.table import FAMILIES
from edgelm.spec.own_sizes import padded
from edgelm.spec.tensor_names import stored_name
from edgelm.spec.tensor_shapes import EMBEDDING_WEIGHT, HEAD_WEIGHT, Shapes, tensor_shapes

# Nemotron-H's decoder, and the head of GPT-NeoX.
_OLDER = {"backbone.": "model.", "embed_out.": "lm_head."}
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


def named_as_hugging_face(
    folder: Path, stored: Stored, expected: Iterable[str], spec: DecoderSpec
) -> Stored:
    """The tensors under the names of a causal language model.

    A base model is saved without the prefix `model.` (`gpt_neox.` of GPT-NeoX), and read with it.
    Some checkpoints have older names in place of `model.` or of the head's.

    Raises:
        BadCheckpoint: a tensor exists under both names.
    """
    known, prefix = {*expected, HEAD_WEIGHT}, f"{FAMILIES[spec.family].prefix}."
    named: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        hugging_face = _hugging_face_name(name, known, prefix)
        if hugging_face in named:
            raise BadCheckpoint(
                f"{folder} holds {hugging_face} twice, with and without the prefix {prefix!r}; "
                "keep only the one that belongs to the model"
            )
        named[hugging_face] = tensor
    return named


def head_is_tied(stored: Stored, spec: DecoderSpec) -> bool:
    """Whether the embedding is also the head: if configured, and the file has no different head.

    A stored head that equals the embedding is a copy of it.
    """
    embedding = stored.get(stored_name(spec.family, EMBEDDING_WEIGHT))
    head, configured = stored.get(HEAD_WEIGHT), spec.tie_word_embeddings
    if not configured or head is None or embedding is None:
        return configured
    # Compared as bytes: tensors of different types, or with +0 and -0, are read as two.
    alike = (head.dtype, head.shape) == (embedding.dtype, embedding.shape)
    return alike and _same_bytes(head, embedding)


def tied_to_embedding(stored: Stored, spec: DecoderSpec) -> Stored:
    """The tensors of a model whose head is its embedding, under the embedding's name."""
    embedding = stored_name(spec.family, EMBEDDING_WEIGHT)
    matrix = stored.get(embedding) or stored.get(HEAD_WEIGHT)
    tied = {name: tensor for name, tensor in stored.items() if name != HEAD_WEIGHT}
    return tied if matrix is None else tied | {embedding: matrix}


def without_leftovers(stored: Stored, spec: DecoderSpec) -> Stored:
    """The tensors without unused ones, such as keys of layers that share another's (Gemma 4)."""
    shared = {str(at) for at, one in enumerate(spec.layers) if one.shares_kv_of is not None}
    return {
        name: tensor
        for name, tensor in stored.items()
        if not _is_leftover(name, tensor)
        and not ((found := _KEYS.match(name)) and found[1] in shared)
    }


def without_zero_biases(stored: Stored, spec: DecoderSpec) -> Stored:
    """The tensors without biases of zeros that the model lacks.

    AutoGPTQ writes them for all layers, and Cohere 2's checkpoints can have some.
    """
    known = tensor_shapes(padded(spec) if spec.has_own_sizes else spec)
    return {
        name: tensor
        for name, tensor in stored.items()
        if name in known or not name.endswith(".bias") or not _is_zero(tensor)
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


def _hugging_face_name(name: str, known: set[str], prefix: str) -> str:
    for older, newer in _OLDER.items():
        if name.startswith(older) and newer + name.removeprefix(older) in known:
            return newer + name.removeprefix(older)
    if name.startswith(prefix) and name.removeprefix(prefix) in known:
        return name.removeprefix(prefix)
    return prefix + name if prefix + name in known else name


def _is_zero(tensor: StoredTensor) -> bool:
    with tensor.path.open("rb") as file:
        file.seek(tensor.start)
        return not any(file.read(tensor.end - tensor.start))


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
