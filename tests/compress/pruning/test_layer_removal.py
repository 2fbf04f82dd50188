"""The loss without layers equals that of a model that really lacks them."""

import math
from collections.abc import Collection
from typing import Any

import pytest
import torch

from edgelm.compress.model import spec_of
from edgelm.compress.pruning.importance import Importance
from edgelm.compress.pruning.indices import top_k_indices
from edgelm.compress.pruning.layer_removal import (
    block_losses,
    layer_losses,
    layers_without_best_block,
    text_loss,
    without_layers,
)
from edgelm.compress.pruning.prune import prune
from edgelm.compress.pruning.shape import Shape
from edgelm.errors import BadInput
from edgelm.spec.prunable import lasting_layers
from tests.checkpoints.models import DENSE, REPRESENTATIVE, tiny_model
from tests.conftest import TinyFactory
from tests.slow import slow_but

TOKENS = torch.randint(0, 128, (3, 12), generator=torch.Generator().manual_seed(1))


def removed(model: Any, gone: Collection[int]) -> Any:
    """The model without these layers: fewer modules, another configuration."""
    spec = spec_of(model)
    full = Shape.from_spec(spec)
    layers = spec.num_hidden_layers
    same = Importance(
        torch.ones(layers, full.num_attention_heads),
        torch.ones(layers, spec.mlp_width),
        torch.ones(full.hidden_size),
        torch.ones(layers),
    )
    kept = [layer for layer in range(layers) if layer not in gone]
    shape = Shape(
        len(kept),
        full.hidden_size,
        full.intermediate_size,
        full.num_attention_heads,
        full.num_key_value_heads,
    )
    return prune(model, shape, same, layers=kept)


def their_loss(model: Any) -> float:
    """The mean loss a token, by transformers."""
    with torch.inference_mode():
        return float(model(TOKENS, labels=TOKENS, use_cache=False).loss)


@pytest.mark.parametrize("name", slow_but(DENSE, REPRESENTATIVE))
def test_without_each_layer(calm: TinyFactory, name: str) -> None:
    model = calm(name).hf
    rises = layer_losses(model, text_loss([TOKENS]))
    whole = their_loss(model)
    lasting = lasting_layers(spec_of(model))
    others = [layer for layer in range(len(rises)) if layer not in lasting]
    expected = torch.tensor([their_loss(removed(model, [layer])) - whole for layer in others])
    assert len(rises) == spec_of(model).num_hidden_layers
    torch.testing.assert_close(rises[others], expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(rises[list(lasting)], expected.max().expand(len(lasting)))
    assert rises.abs().min() > 1e-4, "every layer of this model does something"


@pytest.mark.parametrize("size", [1, 2, 3])
def test_without_each_block(calm: TinyFactory, size: int) -> None:
    model = calm("qwen3").hf
    seen: list[tuple[int, int]] = []
    losses = block_losses(model, size, text_loss([TOKENS]), lambda *done: seen.append(done))
    expected = [
        their_loss(removed(model, range(start, start + size))) for start in range(4 - size + 1)
    ]
    assert losses == pytest.approx(expected, abs=2e-5)
    assert seen == [(done + 1, len(expected)) for done in range(len(expected))]


def test_a_loss_that_is_no_number_is_no_small_one() -> None:
    """Layers without which the loss overflows must not look like those that do nothing."""
    losses = iter([1.0, math.nan, math.inf, 1.5, 3.0, 2.0])  # of the model, then without a layer
    rises = layer_losses(tiny_model("gemma4"), lambda _: next(losses))
    expected = torch.tensor([math.nan, 2.0, 2.0, math.inf, 0.5, 2.0, 2.0])  # 1, 2 and 6 stay
    assert torch.equal(rises.isnan(), expected.isnan())
    assert rises.nan_to_num().equal(expected.nan_to_num())
    assert top_k_indices(rises, 6).tolist() == [0, 1, 2, 3, 5, 6]


def test_blocks_of_layers_that_are_needed() -> None:
    model = tiny_model("gemma4")  # layers 1, 2 and 6 stay
    losses = block_losses(model, 2, text_loss([TOKENS]))
    assert [math.isfinite(loss) for loss in losses] == [False, False, False, True, True, False]
    assert layers_without_best_block(model, 3, text_loss([TOKENS])) == [0, 1, 2, 6]
    with pytest.raises(
        BadInput, match="cannot remove 4 layers of gemma4_text: layers 1, 2, 6 stay"
    ):
        layers_without_best_block(model, 4, text_loss([TOKENS]))


def test_batches_count_by_their_tokens(calm: TinyFactory) -> None:
    """Sequences of other lengths: the mean is over tokens, not over batches."""
    model = calm("llama").hf
    short = TOKENS[:1, :4]
    loss = text_loss([TOKENS, short])(model)
    with torch.inference_mode():
        of_short = float(model(short, labels=short, use_cache=False).loss)
    assert loss == pytest.approx((33 * their_loss(model) + 3 * of_short) / 36, abs=1e-5)


def idle(model: Any, layers: Collection[int]) -> Any:
    """The model with layers that add nothing to the residual stream."""
    with torch.no_grad():
        for layer in layers:
            model.base_model.layers[layer].self_attn.o_proj.weight.zero_()
            model.base_model.layers[layer].mlp.down_proj.weight.zero_()
    return model


@pytest.mark.parametrize("useless", [(0, 1), (1, 2), (2, 3)])
def test_the_best_block_is_the_one_that_does_nothing(useless: tuple[int, int]) -> None:
    model, measure = idle(tiny_model("llama"), useless), text_loss([TOKENS])
    # The least loss need not be that of the whole model, so what is measured is the distance.
    whole = measure(model)
    kept = layers_without_best_block(model, 2, lambda one: abs(measure(one) - whole))
    assert kept == [layer for layer in range(4) if layer not in useless]
    assert layer_losses(model, measure)[list(useless)].tolist() == pytest.approx([0, 0], abs=1e-6)


def test_the_first_of_equally_good_blocks() -> None:
    model = tiny_model("llama")
    losses = iter([3.0, 1.0, 1.0])
    assert layers_without_best_block(model, 2, lambda _: next(losses)) == [0, 3]


def test_layers_come_back(calm: TinyFactory) -> None:
    model = calm("llama").hf
    before = their_loss(model)
    with without_layers(model, [1, 2]):
        assert their_loss(model) != before
    assert their_loss(model) == before
    with pytest.raises(KeyboardInterrupt), without_layers(model, [0]):
        raise KeyboardInterrupt
    assert their_loss(model) == before
