"""The loss on hidden states: by hand, and on the states that the next norm sees."""

from typing import Any

import pytest
import torch

from edgelm.compress.distillation.loss.hidden_loss import HiddenLoss, States, record_states
from edgelm.compress.distillation.loss.layer_map import EMBEDDING, check_map, default_map
from edgelm.compress.distillation.loss.objective import Objective
from edgelm.compress.distillation.student_teacher import Distiller
from edgelm.errors import BadInput
from edgelm.spec.tensor_names import stored_name
from tests.checkpoints.models import REPRESENTATIVE, TINY, tiny_model
from tests.compress.training import teacher_and_student
from tests.conftest import TinyFactory
from tests.slow import slow_but

TOKENS = torch.randint(0, 128, (2, 12), generator=torch.Generator().manual_seed(1))


def states_of(**layers: list[list[float]]) -> States:
    """One sequence of states a layer, by names such as `layer0`."""
    return States(
        {int(name[5:]): torch.tensor([rows], dtype=torch.float32) for name, rows in layers.items()}
    )


def test_cosine_by_hand() -> None:
    student = states_of(layer0=[[1, 0], [0, 2]], layer1=[[1, 1], [3, 4]])
    teacher = states_of(layer2=[[5, 0], [0, -1]], layer5=[[1, 0], [4, 3]])
    # 0 and 2 by the first pair, 1 - 1/√2 and 1 - 24/25 by the second.
    loss = HiddenLoss(((0, 2), (1, 5)), 2, 2)(student, teacher)
    assert float(loss) == pytest.approx((1 + (2 - 0.5**0.5 - 0.96) / 2) / 2)


def test_states_of_another_width_are_projected_up() -> None:
    loss = HiddenLoss(((0, 0), (1, 1)), 2, 3)
    assert loss.up is not None
    assert loss.up.weight.shape == (3, 2)
    with torch.no_grad():
        loss.up.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1]]))
    student = states_of(layer0=[[1, 0]], layer1=[[1, 2]])
    teacher = states_of(layer0=[[1, 0, 0]], layer1=[[2, 4, 6]])
    value = loss(student, teacher)
    # [1, 0, 1] beside [1, 0, 0]; [1, 2, 3] beside twice itself.
    assert float(value.detach()) == pytest.approx((1 - 0.5**0.5) / 2)
    value.backward()
    assert loss.up.weight.grad is not None
    assert loss.up.weight.grad.abs().max() > 0


def test_the_projection_is_alike_on_every_start() -> None:
    torch.manual_seed(1)
    first = HiddenLoss(((0, 0),), 48, 64).up
    torch.manual_seed(2)
    second = HiddenLoss(((0, 0),), 48, 64).up
    assert first is not None
    assert second is not None
    assert torch.equal(first.weight, second.weight)
    assert float(first.weight.detach().std()) == pytest.approx(48**-0.5, rel=0.05)
    assert HiddenLoss(((0, 0),), 64, 64).up is None


@pytest.mark.parametrize("name", slow_but(TINY, REPRESENTATIVE))
def test_states_are_normed_as_the_next_layer_sees_them(tiny: TinyFactory, name: str) -> None:
    model, spec = tiny(name).hf, tiny(name).checkpoint.spec
    last = len(model.base_model.layers) - 1
    layers = (EMBEDDING, 0, last)
    with torch.inference_mode():
        found = model.base_model(TOKENS, use_cache=False, output_hidden_states=True)
        with record_states(model, layers) as states:
            model.base_model(TOKENS, use_cache=False)
        assert list(states.by_layer) == list(layers)
        for layer in layers:
            expected = found.hidden_states[layer + 1]  # transformers counts the embeddings as 0
            if layer == last:
                expected = found.last_hidden_state
            elif spec.altup is not None:
                expected = model.model.layers[layer + 1].altup.predict(expected)[0]
            norm = stored_name(spec.family, f"model.layers.{layer + 1}.input_layernorm")
            if layer != last and spec.norms != "post":
                expected = model.get_submodule(norm)(expected)
            torch.testing.assert_close(states.by_layer[layer], expected, rtol=1e-5, atol=1e-5)
        model.base_model(TOKENS[:, :3], use_cache=False)
    assert states.by_layer[0].shape[1] == TOKENS.shape[1], "nothing is recorded after the block"


@pytest.mark.parametrize("name", ["llama", "olmo2", "gemma3", "phi3"])
def test_nothing_between_identical_models(name: str) -> None:
    teacher, student = tiny_model(name), tiny_model(name)
    last = len(teacher.model.layers) - 1
    pairs = tuple((layer, layer) for layer in (EMBEDDING, 0, last))
    losses = Distiller(student, teacher, Objective(), layer_map=pairs)(TOKENS)
    assert float(losses.hidden) == pytest.approx(0, abs=1e-6)


def test_counts_as_much_as_the_logits() -> None:
    """Minitron's dynamic weight; and its gradient reaches the student's early layers."""
    teacher, student = teacher_and_student()
    plain = Distiller(student, teacher, Objective())(TOKENS)
    losses = Distiller(student, teacher, Objective(), layer_map=((0, 0),))(TOKENS)
    assert float(losses.hidden) > 1e-3
    torch.testing.assert_close(losses.divergence, plain.divergence)
    assert float(losses.total.detach()) == pytest.approx(2 * float(plain.divergence), rel=1e-5)

    def gradient_of(loss: torch.Tensor) -> Any:
        student.zero_grad()
        loss.backward()
        return student.model.layers[0].mlp.down_proj.weight.grad.clone()

    assert not torch.allclose(gradient_of(losses.total), gradient_of(plain.total), rtol=1e-2)


def test_default_pairs() -> None:
    assert default_map(24, 30) == ((-1, -1), (21, 27))
    assert default_map(2, 4) == ((-1, -1), (0, 1)), "no layer before the first"


@pytest.mark.parametrize("pair", [(3, 0), (0, 4), (-2, 0), (0, -2)], ids=str)
def test_layers_that_are_not_there(pair: tuple[int, int]) -> None:
    message = (
        rf"layer map {pair[0]}:{pair[1]}: the student has layers 0 to 2, the teacher 0 to 3; "
        "-1 is the embeddings"
    )
    with pytest.raises(BadInput, match=message):
        check_map([(0, 0), pair], 3, 4)


def test_every_layer_can_be_mapped() -> None:
    check_map([(-1, -1), (0, 0), (2, 3)], 3, 4)
