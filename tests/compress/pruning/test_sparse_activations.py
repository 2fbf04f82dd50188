"""How many gates of a pruned MLP pass, with the cutoff that Gemma 3n takes over all of them."""

import dataclasses
from statistics import NormalDist
from typing import Any

import msgspec
import pytest
import torch

from edgelm.compress.model import spec_of
from edgelm.compress.pruning.importance import score
from edgelm.compress.pruning.indices import select_indices
from edgelm.compress.pruning.prune import prune
from edgelm.compress.pruning.shape import Shape
from edgelm.compress.pruning.sparse_activations import share_with_cutoff
from tests.checkpoints.models import soften_attention, tiny_model

TOKENS = torch.randint(0, 128, (16, 24), generator=torch.Generator().manual_seed(1))
SPARSITY = [0.9, 0.6, 0.0, 0.3, 0.0, 0.8, 0.7]


def half_idle() -> Any:
    """A model of which every other neuron is never active."""
    model = tiny_model("gemma3n", intermediate_size=[256] * 7, activation_sparsity_pattern=SPARSITY)
    soften_attention(model)
    with torch.no_grad():
        for layer in model.model.layers:
            for matrix in (layer.mlp.gate_proj, layer.mlp.up_proj):
                matrix.weight[::2] = 0
            layer.mlp.down_proj.weight[:, ::2] = 0
    return model


def active_shares(model: Any) -> list[float]:
    """Of every layer's neurons, the share that is not zero."""
    shares: list[float] = []
    hooks = [
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _, inputs: shares.append(float((inputs[0] != 0).float().mean()))
        )
        for layer in model.model.layers
    ]
    with torch.inference_mode():
        model.model(TOKENS)
    for hook in hooks:
        hook.remove()
    return shares


def test_the_gates_that_pass_are_the_teachers() -> None:
    teacher = half_idle()
    importance = score(teacher, [TOKENS])
    shape = msgspec.structs.replace(Shape.from_spec(spec_of(teacher)), intermediate_size=128)
    assert all(
        kept.tolist() == list(range(1, 256, 2))
        for kept in select_indices(spec_of(teacher), shape, importance).neurons
    )
    student = prune(teacher, shape, importance)
    unchanged = prune(teacher, shape, dataclasses.replace(importance, gates=None))
    assert unchanged.config.activation_sparsity_pattern == SPARSITY
    theirs = [2 * share for share in active_shares(teacher)]  # of the neurons that are ever active
    for index, (ours, before) in enumerate(
        zip(active_shares(student), active_shares(unchanged), strict=True)
    ):
        if not SPARSITY[index]:
            continue
        assert ours == pytest.approx(theirs[index], abs=0.03), f"layer {index}"
        assert abs(before - theirs[index]) > 2 * abs(ours - theirs[index])
    assert distance(student, teacher) < 0.5 * distance(unchanged, teacher)


def distance(model: Any, teacher: Any) -> float:
    """Mean square of the logits' differences."""
    with torch.inference_mode():
        return float((model(TOKENS).logits - teacher(TOKENS).logits).square().mean())


def test_shares_by_hand() -> None:
    alike = torch.tensor([[0.0, 0.0, 0.0, 0.0], [4.0, 4.0, 4.0, 4.0]])
    assert share_with_cutoff(0.9, alike, torch.arange(4)) == 0.9, "nothing is removed"
    assert share_with_cutoff(0.9, alike, torch.tensor([0, 3])) == pytest.approx(0.9)
    normal = NormalDist()
    # Means 0.5 and 1, deviations sqrt(2 - 0.25) and sqrt(4 - 1).
    half = torch.tensor([[1.0, 0.0, 1.0, 0.0], [4.0, 0.0, 4.0, 0.0]])
    cutoff = 0.5 + normal.inv_cdf(0.9) * 1.75**0.5
    found = share_with_cutoff(0.9, half, torch.tensor([0, 2]))
    assert found == pytest.approx(normal.cdf((cutoff - 1) / 3**0.5))
    far = torch.tensor([[100.0, -100.0], [10000.01, 10000.01]])
    assert 0 < share_with_cutoff(0.5, far, torch.tensor([0])) < 0.01, "zero: another function"
    assert share_with_cutoff(0.5, torch.zeros(2, 2), torch.tensor([0])) == 0.5


def test_other_models_have_no_cutoff() -> None:
    assert score(tiny_model("gemma4"), [TOKENS]).gates is None
