"""Assistants as checkpoints: read, checked, and compared with their model."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgelm.checkpoint.drafts.assistant import is_assistant, open_assistant, read_assistant_spec
from edgelm.checkpoint.source import open_checkpoint, read_spec
from edgelm.errors import BadCheckpoint, BadInput, UnknownName
from edgelm.spec.assistant import Assistant, read_layers
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.groups import groups, matrix_shape
from tests.checkpoints.assistants import save_assistant
from tests.checkpoints.models import tiny_config
from tests.checkpoints.tiny_chat import save_tiny_chat

WEIGHTS = "model.safetensors"
ORDER = "masked_embedding.token_ordering"
Tensors = dict[str, torch.Tensor]
Config = dict[str, Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat(
        tmp_path_factory.mktemp("model"), "gemma4", vocab_size_per_layer_input=320
    )


@pytest.fixture(scope="module")
def spec(model: Path) -> DecoderSpec:
    return read_spec(model)


def change(
    source: Path,
    tensors: Callable[[Tensors], object] = len,
    config: Callable[[Config], object] = len,
) -> None:
    stored = load_file(source / WEIGHTS)
    tensors(stored)
    save_file(stored, source / WEIGHTS, {"format": "pt"})
    found = json.loads((source / "config.json").read_text())
    config(found)
    (source / "config.json").write_text(json.dumps(found))


@pytest.mark.parametrize("centroids", [None, (32, 4)])
def test_its_decoder(
    model: Path, spec: DecoderSpec, tmp_path: Path, centroids: tuple[int, int] | None
) -> None:
    source = save_assistant(tmp_path, model, centroids=centroids)
    opened = open_assistant(source, spec)
    own = opened.spec
    assert own == read_assistant_spec(source, spec)
    assert own.assistant == Assistant(64, *(centroids or ()))
    assert own.looks_up_head is (centroids is not None)
    # The model's layers 0 to 2 have keys of their own: two windowed ones and one without.
    assert [layer.shares_kv_of for layer in own.layers] == [1, 1, 2, 2]
    assert read_layers(own) == (1, 2)
    assert (own.cache_layers, own.logits_softcap, own.states) == ((), None, ())
    tensors = load_file(source / WEIGHTS)
    assert opened.shapes.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(opened.tensor(name), tensor), name
    scalars = own.num_hidden_layers + (own.vocab_size if centroids else 0)
    assert own.parameters == sum(math.prod(one.shape) for one in tensors.values()) - scalars
    assert groups(own)[0] == "assistant.input"
    assert groups(own)[-2:] == ["assistant.output", "lm_head"]
    assert matrix_shape(own, "assistant.input") == (32, 128)
    assert matrix_shape(own, "assistant.output") == (64, 32)


def test_an_output_matrix_of_its_own(model: Path, spec: DecoderSpec, tmp_path: Path) -> None:
    """Beside an embedding that nothing reads."""
    source = save_assistant(tmp_path, model, tie_word_embeddings=False)
    opened = open_assistant(source, spec)
    assert "lm_head.weight" in opened.shapes
    assert "model.embed_tokens.weight" not in opened.shapes
    assert opened.spec.tables == 1


def test_what_is_an_assistant(model: Path, tmp_path: Path) -> None:
    assert is_assistant(save_assistant(tmp_path / "assistant", model))
    assert not is_assistant(model)
    assert not is_assistant("./some/model")


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"backbone_hidden_size": 48}, "expects hidden states of 48, the model has 64"),
        ({"text": {"vocab_size": 128}}, "expects a vocabulary of 128, the model has 320"),
        (
            {"text": {"num_key_value_heads": 4}},
            r"its layer 0 reads keys of 4 heads of 16 channels, and layer 1 of the model, its last "
            "one with a sliding window, has 2 of 16",
        ),
        ({"text": {"global_head_dim": 64}}, "layer 2 reads keys of 2 heads of 64 channels"),
    ],
)
def test_assistants_of_other_models(
    model: Path, spec: DecoderSpec, tmp_path: Path, over: dict[str, Any], message: str
) -> None:
    source = save_assistant(tmp_path, model, **over)
    for read in (open_assistant, read_assistant_spec):
        with pytest.raises(BadInput, match=f"is of another model.*{message}"):
            read(source, spec)


def test_a_model_without_layers_of_the_kind(model: Path, spec: DecoderSpec, tmp_path: Path) -> None:
    source = save_assistant(tmp_path, model)
    config = tiny_config("gemma4-dense", layer_types=["full_attention"] * 7).to_dict()
    other = DecoderSpec.from_hf(config | {"vocab_size": 320})
    with pytest.raises(BadInput, match="has a sliding window, and the model has no such layer"):
        open_assistant(source, other)


def test_by_itself_it_is_no_model(model: Path, tmp_path: Path) -> None:
    source = save_assistant(tmp_path, model)
    for read in (open_checkpoint, read_spec):
        with pytest.raises(UnknownName, match="it drafts for its model: edge-export MODEL --assis"):
            read(source)


def test_what_is_no_assistant_or_no_model_of_one(
    model: Path, spec: DecoderSpec, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="its model_type is 'gemma4_text', expected"):
        open_assistant(model, spec)
    with pytest.raises(BadInput, match="no such folder"):
        open_assistant(tmp_path / "missing", spec)
    with pytest.raises(BadCheckpoint, match=r"has no config\.json"):
        open_assistant(tmp_path, spec)
    source = save_assistant(tmp_path / "assistant", model)
    llama = DecoderSpec.from_hf(tiny_config("llama").to_dict())
    with pytest.raises(BadInput, match="of the family llama; export it without --assistant"):
        open_assistant(source, llama)


def _quantized(config: Config) -> None:
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32}


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        (lambda one: one.update(num_centroids=33), BadCheckpoint, "a multiple of num_centroids"),
        (lambda one: one.update(num_centroids=0), BadCheckpoint, "num_centroids is 0"),
        (lambda one: one.update(centroid_intermediate_top_k=33), BadCheckpoint, "top_k is 33"),
        (lambda one: one.update(backbone_hidden_size="64"), BadCheckpoint, "backbone_hidden_size"),
        (
            lambda one: one["text_config"].update(
                hidden_size_per_layer_input=8, vocab_size_per_layer_input=320
            ),
            BadCheckpoint,
            "assistants have no per-layer embedding",
        ),
        (lambda one: one.update(text_config=None), BadCheckpoint, "text_config is None"),
        (_quantized, BadInput, "assistants are exported from unquantized checkpoints only"),
    ],
)
def test_configurations_that_cannot_be_right(
    model: Path,
    spec: DecoderSpec,
    tmp_path: Path,
    config: Callable[[Config], object],
    kind: type[Exception],
    message: str,
) -> None:
    source = save_assistant(tmp_path, model, centroids=(32, 4))
    change(source, config=config)
    with pytest.raises(kind, match=message):
        open_assistant(source, spec)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (lambda one: one.pop("post_projection.weight"), r"lacks 1 of .*'post_projection\.weight'"),
        (lambda one: one.update(extra=torch.zeros(2)), "do not fit"),
        (lambda one: one.pop(ORDER), "is no such tensor, expected 320 integers"),
        (lambda one: one.update({ORDER: torch.zeros(320)}), r"is F32 \[320\], expected 320"),
        (lambda one: one.update({ORDER: torch.arange(319)}), r"is I64 \[319\], expected 320"),
        (lambda one: one[ORDER].add_(1), "has values from 1 to 320, expected tokens from 0 to 319"),
        (lambda one: one[ORDER].sub_(1), "has values from -1 to 318"),
    ],
)
def test_damaged_tensors(
    model: Path,
    spec: DecoderSpec,
    tmp_path: Path,
    tensors: Callable[[Tensors], object],
    message: str,
) -> None:
    source = save_assistant(tmp_path, model, centroids=(32, 4))
    change(source, tensors)
    with pytest.raises(BadCheckpoint, match=message):
        open_assistant(source, spec)
