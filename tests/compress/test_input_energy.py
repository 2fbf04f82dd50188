"""Mean squares of input channels, by hand."""

import pytest
import torch

from edgelm.compress.input_energy import input_energy
from tests.models import TINY, tiny_model


def test_equals_the_hidden_states_by_hand() -> None:
    model = tiny_model("llama")
    rows = torch.arange(48).view(4, 12)
    seen = []
    hook = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0])
    )
    found = input_energy(model, rows.split(3))
    hook.remove()
    expected = torch.cat([one.flatten(0, 1) for one in seen]).square().mean(0)
    torch.testing.assert_close(found["model.layers.1.mlp.down_proj.weight"], expected)


@pytest.mark.parametrize("name", TINY)
def test_every_matrix_of_the_layers_has_its_own(name: str) -> None:
    model = tiny_model(name)
    found = input_energy(model, [torch.arange(8)[None]])
    matrices = {
        key: weight
        for key, weight in model.named_parameters()
        if weight.ndim == 2 and ".layers." in key
    }
    assert found.keys() == matrices.keys()
    assert all(len(energy) == matrices[key].shape[1] for key, energy in found.items())
