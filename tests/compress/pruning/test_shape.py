"""Shapes and layers that a decoder can be pruned to, and those that are refused."""

import dataclasses

import msgspec
import pytest
import torch

from edgelm.compress.model import load_model, spec_of
from edgelm.compress.pruning.indices import select_indices
from edgelm.compress.pruning.prune import prune
from edgelm.compress.pruning.shape import Shape
from edgelm.errors import BadInput
from tests.checkpoints.models import tiny_model
from tests.compress.pruning.test_prune import random_importance, with_heads
from tests.conftest import TinyFactory


def test_heads_that_are_as_wide_as_the_stream() -> None:
    teacher = tiny_model("stablelm")
    shape = msgspec.structs.replace(Shape.from_spec(spec_of(teacher)), num_attention_heads=2)
    with pytest.raises(BadInput, match="hidden_size 64 is not that of 2 heads of 16 channels"):
        prune(teacher, shape, random_importance(teacher))
    shape = with_heads(shape, spec_of(teacher), 2)
    assert Shape.from_spec(spec_of(prune(teacher, shape, random_importance(teacher)))) == shape


def test_a_layer_with_attention_stays() -> None:
    teacher = tiny_model("qwen3.5")  # attention in layers 1 and 3
    shape = msgspec.structs.replace(Shape.from_spec(spec_of(teacher)), num_hidden_layers=2)
    influence = torch.tensor([0.9, 0.1, 0.8, 0.2])
    importance = dataclasses.replace(random_importance(teacher), layers=influence)
    assert select_indices(spec_of(teacher), shape, importance).layers == (0, 3)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "gemma4",
            {"num_attention_heads": 2, "num_key_value_heads": 1},
            "num_key_value_heads of gemma4_text: layers share the keys and values of others; "
            "prune num_hidden_layers or hidden_size or intermediate_size or num_attention_heads",
        ),
        (
            "gemma4",
            {"num_hidden_layers": 2},
            "num_hidden_layers of gemma4_text to 2: its layers 1, 2, 6 stay, because others read",
        ),
    ],
)
def test_what_a_family_cannot_lose(name: str, change: dict[str, int], message: str) -> None:
    teacher = tiny_model(name)
    shape = msgspec.structs.replace(Shape.from_spec(spec_of(teacher)), **change)
    with pytest.raises(BadInput, match=f"cannot prune {message}"):
        prune(teacher, shape, random_importance(teacher))


def test_layers_of_choice_without_one_that_is_needed() -> None:
    teacher = tiny_model("gemma3n")  # layers 4 to 6 read what 2 and 3 made
    shape = msgspec.structs.replace(Shape.from_spec(spec_of(teacher)), num_hidden_layers=4)
    with pytest.raises(BadInput, match="expected layer 2 among them, because others read its key"):
        prune(teacher, shape, random_importance(teacher), layers=[0, 1, 3, 5])


def test_layers_that_are_needed_stay_whatever_their_influence() -> None:
    teacher = tiny_model("gemma4")
    shape = msgspec.structs.replace(Shape.from_spec(spec_of(teacher)), num_hidden_layers=4)
    influence = torch.tensor([0.9, 0.1, 0.2, 0.8, 0.7, 0.6, 0.0])
    importance = dataclasses.replace(random_importance(teacher), layers=influence)
    assert select_indices(spec_of(teacher), shape, importance).layers == (0, 1, 2, 6)


def test_heads_that_divide_into_the_groups_of_every_layer() -> None:
    teacher = tiny_model(
        "gemma4-dense", num_attention_heads=8, num_key_value_heads=2, num_global_key_value_heads=4
    )
    full = Shape.from_spec(spec_of(teacher))
    shape = msgspec.structs.replace(full, num_attention_heads=6)
    with pytest.raises(BadInput, match="6 heads do not divide into the KV groups of every layer"):
        prune(teacher, shape, random_importance(teacher))
    shape = msgspec.structs.replace(full, num_attention_heads=4)
    assert Shape.from_spec(spec_of(prune(teacher, shape, random_importance(teacher)))) == shape


def test_layers_of_choice(tiny: TinyFactory) -> None:
    teacher = load_model(tiny("smollm3").folder)
    shape = msgspec.structs.replace(Shape.from_spec(spec_of(teacher)), num_hidden_layers=2)
    student = prune(teacher, shape, random_importance(teacher), layers=[0, 3])
    assert student.config.no_rope_layers == [
        teacher.config.no_rope_layers[0],
        teacher.config.no_rope_layers[3],
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 65}, "cannot prune hidden_size to 65; expected 1 to 64"),
        ({"num_hidden_layers": 0}, "cannot prune num_hidden_layers to 0"),
        ({"num_attention_heads": 3}, "3 heads do not divide into 2 KV groups"),
        ({"num_key_value_heads": 1}, "4 heads in 1 KV groups are 4 per group, the model has 2"),
    ],
)
def test_shapes_that_cannot_be(tiny: TinyFactory, change: dict[str, int], message: str) -> None:
    teacher = tiny("llama").hf
    shape = msgspec.structs.replace(Shape.from_spec(spec_of(teacher)), **change)
    with pytest.raises(BadInput, match=message):
        prune(teacher, shape, random_importance(teacher))


def test_scores_of_another_model(tiny: TinyFactory) -> None:
    teacher = tiny("llama").hf
    other = random_importance(tiny_model("llama", intermediate_size=80))
    with pytest.raises(BadInput, match="score it again"):
        prune(teacher, Shape.from_spec(spec_of(teacher)), other)


@pytest.mark.parametrize("layers", [[0, 0], [1, 0], [0, 9], [0]])
def test_bad_layers(tiny: TinyFactory, layers: list[int]) -> None:
    teacher = tiny("llama").hf
    shape = msgspec.structs.replace(Shape.from_spec(spec_of(teacher)), num_hidden_layers=2)
    with pytest.raises(BadInput, match="expected 2 ascending indices below 4"):
        prune(teacher, shape, random_importance(teacher), layers=layers)
