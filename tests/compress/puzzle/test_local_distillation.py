"""Local distillation and scores of alternatives on a tiny teacher."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from edgelm.checkpoint.own_modules import half_name
from edgelm.compress.distillation.settings import Distillation
from edgelm.compress.evaluation.held_out import held_out_divergence
from edgelm.compress.model import spec_of
from edgelm.compress.pruning.importance import Importance, score
from edgelm.compress.puzzle.alternatives import Alternative, alternatives
from edgelm.compress.puzzle.library import LayerHalves, layer_file, make_layers, read_half
from edgelm.compress.puzzle.local_distillation import distill_locally
from edgelm.compress.puzzle.scores import replaced, score_alternatives
from edgelm.compress.puzzle.settings import PuzzleSettings
from edgelm.compress.puzzle.student import assemble
from edgelm.errors import BadInput
from tests.checkpoints.models import tiny_model
from tests.compress.training import LENGTH, rows, weights

SETTINGS = Distillation(
    tokens=12 * 4 * LENGTH,
    sequence_length=LENGTH,
    batch_size=4,
    micro_batch=2,
    learning_rate=3e-3,
    checkpoint_steps=4,
    bf16=False,
)
PUZZLE = PuzzleSettings(mlp_ratios=(0.5, 0.25, 0.0), kv_heads=(1,))


@pytest.fixture(scope="module", params=["llama-untied", "phi3", "qwen3", "gpt-neox"])
def teacher(request: pytest.FixtureRequest) -> Any:
    return tiny_model(request.param).requires_grad_(False)


@pytest.fixture(scope="module")
def importance(teacher: Any) -> Importance:
    return score(teacher, [rows().batch(range(8))])


def layers_of(teacher: Any, importance: Importance) -> list[LayerHalves]:
    spec = spec_of(teacher)
    found = alternatives(spec, PUZZLE, 1)
    return list(make_layers(teacher, spec, found, importance, None, range(len(spec.layers))))


def trained(teacher: Any, importance: Importance, folder: Path) -> list[float]:
    folder.mkdir(exist_ok=True)
    layers = layers_of(teacher, importance)
    steps = distill_locally(teacher, spec_of(teacher), layers, rows(), SETTINGS, folder)
    return [step.loss for step in steps]


def test_halves_learn_their_teachers_outputs(
    teacher: Any, importance: Importance, tmp_path: Path
) -> None:
    before = weights(teacher)
    losses = trained(teacher, importance, tmp_path)
    assert len(losses) == 12
    assert losses[-1] < losses[0] < 1.0
    assert all(torch.equal(before[name], one) for name, one in teacher.named_parameters())
    assert not any(module._forward_hooks for module in teacher.modules())
    assert trained(teacher, importance, tmp_path) == [], "finished layers are not trained again"


def test_an_interrupted_pass_resumes_to_the_same_bits(
    teacher: Any, importance: Importance, tmp_path: Path
) -> None:
    trained(teacher, importance, tmp_path / "whole")
    (tmp_path / "parts").mkdir()
    spec = spec_of(teacher)
    layers = layers_of(teacher, importance)
    steps: Iterator[Any] = distill_locally(
        teacher, spec, layers, rows(), SETTINGS, tmp_path / "parts"
    )
    for step in steps:
        if step.step == 6:  # two steps after a checkpoint
            break
    # Killed while it wrote the checkpoint of step 8: one layer is ahead of the others.
    for one in distill_locally(
        teacher,
        spec,
        layers_of(teacher, importance)[:1],
        rows(),
        msgspec.structs.replace(SETTINGS),
        tmp_path / "parts",
    ):
        if one.step == 8:
            break
    assert len(trained(teacher, importance, tmp_path / "parts")) == 8
    for layer in range(len(spec.layers)):
        whole, parts = (layer_file(tmp_path / name, layer) for name in ("whole", "parts"))
        assert whole.read_bytes() == parts.read_bytes()


def test_ctrl_c_keeps_the_steps(teacher: Any, importance: Importance, tmp_path: Path) -> None:
    layers = layers_of(teacher, importance)
    steps = distill_locally(teacher, spec_of(teacher), layers, rows(), SETTINGS, tmp_path)
    assert [next(steps).step for _ in range(4)] == [1, 2, 3, 4]
    signal.raise_signal(signal.SIGINT)
    assert next(steps).step == 5
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    assert len(trained(teacher, importance, tmp_path)) == 12 - 5


def test_scores_are_of_the_teacher_with_one_alternative(
    teacher: Any, importance: Importance, tmp_path: Path
) -> None:
    trained(teacher, importance, tmp_path)
    spec = spec_of(teacher)
    found = alternatives(spec, PUZZLE, 1)
    held_out = rows(6, seed=1).batch(range(6))
    before = weights(teacher)
    scores = score_alternatives(teacher, spec, found, tmp_path, held_out, tmp_path)
    assert all(torch.equal(before[name], one) for name, one in teacher.named_parameters())
    assert found[0] == Alternative(0, "attention", 1)
    for index in (0, 1, 2, len(found) - 1):
        student = assemble(teacher, spec, [found[index]], tmp_path)
        assert held_out_divergence(student, teacher, held_out) == pytest.approx(
            scores[index], rel=1e-4, abs=1e-7
        )
    assert all(one >= -1e-6 for one in scores)
    # Half of the lines were written, the last of them in part.
    path = tmp_path / "scores-0.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) // 2]) + lines[-1][:9] + "\n")
    assert score_alternatives(teacher, spec, found, tmp_path, held_out, tmp_path) == scores


@pytest.mark.parametrize("family", ["llama-untied", "phi3", "gemma3", "lfm2", "apertus"])
def test_all_neurons_are_the_teachers_mlp(family: str) -> None:
    teacher = tiny_model(family)
    spec, importance = spec_of(teacher), score(teacher, [rows().batch(range(2))])
    whole = Alternative(1, "mlp", spec.intermediate_size)
    (layer,) = make_layers(teacher, spec, [whole], importance, None, [1])
    hidden = torch.randn(2, 5, spec.hidden_size, generator=torch.Generator().manual_seed(0))
    target = _mlp_output(teacher, 1, hidden)
    losses = layer.learn("mlp", lambda module: module(hidden), target, 1.0)
    assert losses[whole] < 1e-10


def _mlp_output(teacher: Any, layer: int, hidden: torch.Tensor) -> torch.Tensor:
    block = teacher.model.layers[layer]
    mlp = getattr(block, "mlp", None) or block.feed_forward
    with torch.no_grad():
        return mlp(hidden)  # type: ignore[no-any-return]


def test_a_damaged_library_is_named(teacher: Any, importance: Importance, tmp_path: Path) -> None:
    trained(teacher, importance, tmp_path)
    path = layer_file(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    spec = spec_of(teacher)
    width = next(one for one in alternatives(spec, PUZZLE, 1) if one.layer == 1 and one.is_trained)
    with pytest.raises(BadInput, match=r"layer-0001\.safetensors is missing or damaged"):
        read_half(teacher, spec, tmp_path, width)
    with pytest.raises(BadInput, match="damaged"), replaced(teacher, spec, width, tmp_path):
        pass


def test_a_step_does_not_depend_on_how_it_is_divided(
    teacher: Any, importance: Importance, tmp_path: Path
) -> None:
    """Rows differ in the size of their outputs, by which each error is divided."""
    results = []
    for part in (4, 1):
        folder = tmp_path / str(part)
        folder.mkdir()
        layers = layers_of(teacher, importance)
        settings = msgspec.structs.replace(SETTINGS, micro_batch=part)
        data = rows()
        steps = distill_locally(teacher, spec_of(teacher), layers, data, settings, folder)
        losses = [step.loss for step in steps]
        results.append(
            (losses, {key: weights(half) for one in layers for key, half in one.modules.items()})
        )
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-4)
    for key, whole in results[0][1].items():
        for name, tensor in whole.items():
            if name == "query_key_value.bias":
                continue  # keys' channels without rotation shift all scores alike: pure rounding
            torch.testing.assert_close(results[1][1][key][name], tensor, rtol=0, atol=3e-5)


@pytest.mark.parametrize(
    "family", ["qwen2", "qwen3.5-keys", "gemma2", "granite-swa", "phi3-partial"]
)
def test_heads_that_do_nothing_are_left_out_exactly(family: str, tmp_path: Path) -> None:
    """Of each layer a key head whose queries have no outputs: least squares has nothing to do."""
    teacher = tiny_model(family)
    spec = spec_of(teacher)
    of_group = spec.num_attention_heads // spec.num_key_value_heads * spec.head_dim
    for number, index in enumerate(spec.attention_layers):
        unused = number % spec.num_key_value_heads
        output = teacher.get_submodule(half_name(spec, index, "attention")).o_proj
        with torch.no_grad():
            output.weight[:, unused * of_group : (unused + 1) * of_group] = 0
    importance = score(teacher, [rows().batch(range(2))])
    for number, index in enumerate(spec.attention_layers):
        heads = importance.heads[index].view(spec.num_key_value_heads, -1)
        heads[number % spec.num_key_value_heads] = 0
    found = alternatives(spec, PuzzleSettings(kv_heads=(1,), mlp_ratios=()), 1)
    chosen = [one for one in found if one.is_trained]
    assert [one.layer for one in chosen] == list(spec.attention_layers)
    for layer in make_layers(teacher, spec, chosen, importance, None, range(len(spec.layers))):
        layer.save(layer_file(tmp_path, layer.layer), training=False)
    student = assemble(teacher, spec, chosen, tmp_path)
    tokens = rows().batch(range(2))
    with torch.inference_mode():
        ours, theirs = student(tokens).logits, teacher(tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)
    assert sum(one.numel() for one in student.parameters()) < spec.parameters
