"""Open the assistant of a Gemma 4, a checkpoint of its own (edgelm.spec.assistant)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgelm.checkpoint.license import read_license
from edgelm.checkpoint.quantized.method import quantization_of
from edgelm.checkpoint.refused_formats import check_folder
from edgelm.checkpoint.source import Checkpoint, looks_like_hub_id, source_folder
from edgelm.checkpoint.text_part import text_config
from edgelm.checkpoint.weights.files import stored_tensors, weight_files
from edgelm.checkpoint.weights.folder_tensors import FolderTensors
from edgelm.checkpoint.weights.names import (
    check_stored,
    head_is_tied,
    tied_to_embedding,
    without_leftovers,
)
from edgelm.checkpoint.weights.safetensors_header import StoredTensor
from edgelm.checkpoint.weights.values import read_tensor
from edgelm.errors import BadCheckpoint, BadInput
from edgelm.files.json_files import read_json_object, shown
from edgelm.spec.assistant import Assistant, with_sources
from edgelm.spec.config.config_fields import Fields
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.tensor_shapes import EMBEDDING_WEIGHT, TOKEN_ORDER, tensor_shapes

MODEL_TYPE = "gemma4_assistant"
_OF_MODELS = "gemma4_text"
_DEFAULTS: dict[str, Any] = {
    "backbone_hidden_size": 1536,
    "use_ordered_embeddings": False,
    "num_centroids": 2048,
    "centroid_intermediate_top_k": 32,
    "tie_word_embeddings": True,
}
_INTEGERS = ("I64", "I32")


def open_assistant(source: str | Path, model: DecoderSpec) -> Checkpoint:
    """Open the assistant of a model: a folder or a hub id.

    Args:
        source: the assistant's checkpoint.
        model: the decoder that it drafts for.

    Raises:
        BadInput: no assistant, or one of another model.
        BadCheckpoint: tensors are missing, or of other shapes than config.json says.
    """
    folder, revision = source_folder(source)
    check_folder(folder)
    config = _read_config(folder)
    if quantization_of(folder, config) is not None:
        raise BadInput(
            f"{folder} is quantized, but assistants are exported from unquantized checkpoints only"
        )
    files = weight_files(folder, config)
    spec = with_sources(read_assistant(config), _checked_model(model))
    stored = without_leftovers(stored_tensors(files), spec)
    tied = head_is_tied(stored, spec)
    spec = msgspec.structs.replace(spec, tie_word_embeddings=tied)
    if tied:
        stored = tied_to_embedding(stored, spec)
    else:  # its inputs are rows of its model's embedding
        stored = {name: one for name, one in stored.items() if name != EMBEDDING_WEIGHT}
    shapes = tensor_shapes(spec)
    _check_order(folder, stored, spec)
    floats = {name: one for name, one in stored.items() if name != TOKEN_ORDER}
    check_stored(folder, floats, {name: one for name, one in shapes.items() if name != TOKEN_ORDER})
    return Checkpoint(
        str(source),
        folder,
        config,
        spec,
        shapes,
        FolderTensors(spec, stored, {}),
        tuple(files),
        revision,
        read_license(folder),
        {name: tensor.path for name, tensor in stored.items()},
    )


def read_assistant_spec(source: str | Path, model: DecoderSpec) -> DecoderSpec:
    """The decoder of an assistant, whose weights are not opened.

    Raises:
        BadInput, BadCheckpoint: as `open_assistant`, for what config.json says.
    """
    folder, _ = source_folder(source, files=["config.json"])
    return with_sources(read_assistant(_read_config(folder)), _checked_model(model))


def is_assistant(source: str | Path) -> bool:
    """Whether a folder, or what a hub id names, is the checkpoint of an assistant.

    Raises:
        BadInput: the hub cannot be reached.
    """
    folder = Path(source)
    if not folder.exists() and looks_like_hub_id(str(source)):
        folder, _ = source_folder(source, files=["config.json"])
    path = folder / "config.json"
    return path.is_file() and read_json_object(path).get("model_type") == MODEL_TYPE


def read_assistant(config: Mapping[str, Any]) -> DecoderSpec:
    """Read an assistant's `config.json`; its layers do not name those of its model yet.

    Raises:
        BadCheckpoint: a field is missing or has an invalid value.
    """
    text = text_config(dict(config) | {"model_type": "gemma4"})
    fields = Fields(dict(config), _DEFAULTS)
    # All of its layers share keys and values, of layers that are not here.
    text |= {"num_kv_shared_layers": 0, "use_double_wide_mlp": False}
    spec = DecoderSpec.from_hf(text)
    if spec.per_layer_inputs is not None:
        raise BadCheckpoint(
            "config.json: hidden_size_per_layer_input of text_config is "
            f"{spec.per_layer_inputs.size}, expected 0: assistants have no per-layer embedding"
        )
    centroids = active = 0
    if fields.flag("use_ordered_embeddings"):
        centroids = fields.required("num_centroids")
        active = fields.required("centroid_intermediate_top_k", most=centroids)
        if spec.vocab_size % centroids:
            raise BadCheckpoint(
                f"config.json: vocab_size is {spec.vocab_size}, expected a multiple of "
                f"num_centroids, {centroids}"
            )
    own = Assistant(fields.required("backbone_hidden_size"), centroids, active)
    return msgspec.structs.replace(
        spec,
        assistant=own,
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        logits_softcap=None,  # transformers computes none
        embedding_multiplier=1.0,  # its inputs are its model's
    )


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = read_json_object(folder / "config.json")
    except FileNotFoundError:
        raise BadCheckpoint(
            f"{folder} has no config.json; expected a Hugging Face model folder"
        ) from None
    kind = config.get("model_type")
    if kind != MODEL_TYPE:
        raise BadInput(
            f"{folder} is not an assistant: its model_type is {shown(kind)}, expected "
            f"{MODEL_TYPE!r}; a small model of the same tokenizer drafts by --draft-for BUNDLE"
        )
    return config


def _checked_model(model: DecoderSpec) -> DecoderSpec:
    if model.family != _OF_MODELS or not model.has_head:
        raise BadInput(
            f"assistants draft for Gemma 4 ({_OF_MODELS}), and this model is of the family "
            f"{model.family}; export it without --assistant"
        )
    return model


def _check_order(folder: Path, stored: Mapping[str, StoredTensor], spec: DecoderSpec) -> None:
    """Raise BadCheckpoint unless the order of tokens, if there is one, consists of tokens."""
    assert spec.assistant is not None
    order = stored.get(TOKEN_ORDER)
    if not spec.assistant.centroids:
        return
    if order is None or order.dtype not in _INTEGERS or order.shape != (spec.vocab_size,):
        found = "no such tensor" if order is None else f"{order.dtype} {list(order.shape)}"
        raise BadCheckpoint(
            f"{folder}: {TOKEN_ORDER} is {found}, expected {spec.vocab_size} integers "
            f"({' or '.join(_INTEGERS)}), since use_ordered_embeddings is true"
        )
    lowest, highest = (int(bound) for bound in read_tensor(order).aminmax())
    if lowest < 0 or highest >= spec.vocab_size:
        raise BadCheckpoint(
            f"{folder}: {TOKEN_ORDER} has values from {lowest} to {highest}, expected tokens from "
            f"0 to {spec.vocab_size - 1}"
        )
