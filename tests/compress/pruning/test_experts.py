"""Importance and pruning of mixtures of experts: experts, their neurons, shared experts."""

import copy
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from edgelm.compress.model import spec_of
from edgelm.compress.pruning.importance import Importance, score
from edgelm.compress.pruning.indices import select_indices
from edgelm.compress.pruning.prune import prune
from edgelm.compress.pruning.shape import Shape
from edgelm.errors import BadInput
from edgelm.spec.families.table import FAMILIES
from edgelm.spec.prunable import fixed_sizes, following_mamba_heads, mixture_of, mlp_neurons
from edgelm.spec.tensor_names import stored_name
from edgelm.spec.tensor_shapes import stacked_by_input
from tests.checkpoints.models import MIXTURES, decide_clearly, tiny_model
from tests.compress.pruning.test_prune import logits
from tests.compress.saved_students import check_saves

TOKENS = torch.randint(0, 128, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=MIXTURES)
def teacher(request: pytest.FixtureRequest) -> Any:
    model = tiny_model(request.param)
    with torch.no_grad():  # so that a rounding error changes no choice and stays small
        for parameter in model.base_model.layers.parameters():
            if parameter.ndim > 1:
                parameter *= 0.3
    decide_clearly(model)
    return model


def random_importance(model: Any, seed: int = 0) -> Importance:
    """Scores of all parts that a model has."""
    scored = score(model, [TOKENS])
    generator = torch.Generator().manual_seed(seed)
    fields = {
        name: torch.rand(scores.shape, generator=generator)
        for name, scores in vars(scored).items()
        if scores is not None
    }
    return Importance(**fields)


def submodule(model: Any, layer: int, name: str) -> Any:
    return model.get_submodule(
        stored_name(spec_of(model).family, f"model.layers.{layer}.{name}.weight").removesuffix(
            ".weight"
        )
    )


def stacks(model: Any, layer: int) -> Any:
    name = stored_name(spec_of(model).family, f"model.layers.{layer}.mlp.experts.down_proj")
    return model.get_submodule(name.rpartition(".")[0])


def smaller(model: Any, **sizes: int) -> Shape:
    return msgspec.structs.replace(Shape.from_spec(spec_of(model)), **sizes)


def sparse_layers(model: Any) -> list[int]:
    return [at for at, layer in enumerate(spec_of(model).layers) if layer.mlp is not None]


def assert_near(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


def test_scores_against_every_expert_on_its_own(teacher: Any) -> None:
    """Each expert's outputs from what the layer computes when one choice alone has a weight."""
    importance, spec = score(teacher, [TOKENS]), spec_of(teacher)
    assert importance.experts is not None
    assert importance.expert_neurons is not None
    importance.check(spec)
    seen: dict[int, Any] = {}
    hooks = [
        stacks(teacher, layer).register_forward_pre_hook(
            lambda _, inputs, layer=layer: seen.__setitem__(layer, inputs)
        )
        for layer in sparse_layers(teacher)
    ]
    logits(teacher)
    for hook in hooks:
        hook.remove()
    for layer in range(spec.num_hidden_layers):
        if layer not in seen:
            assert not importance.experts[layer].any()
            continue
        hidden, chosen, weights = seen[layer]
        for expert in range(6):
            own = torch.where(chosen == expert, weights, 0)
            with torch.inference_mode():
                outputs = stacks(teacher, layer)(hidden, chosen, own)
            reached = (chosen == expert).any(-1)
            expected = outputs[reached].norm(dim=-1).mean() if reached.any() else torch.zeros(())
            torch.testing.assert_close(importance.experts[layer, expert], expected)


def test_full_shape_is_the_identity(teacher: Any) -> None:
    student = prune(teacher, Shape.from_spec(spec_of(teacher)), random_importance(teacher))
    theirs = teacher.state_dict()
    assert student.state_dict().keys() == theirs.keys()
    for key, tensor in student.state_dict().items():
        assert torch.equal(tensor, theirs[key]), key
    assert student.config.to_dict() == teacher.config.to_dict() | {
        field: getattr(student.config, field)
        for field in ("head_dim", "decoder_sparse_step", "mlp_only_layers")
        if hasattr(student.config, field)
    }


def never_choose(model: Any, tokens: torch.Tensor, expert: int) -> None:
    """Change routers, one after the other, so that no token of a short text reaches an expert."""
    for layer in sparse_layers(model):
        router = submodule(model, layer, "mlp.router")
        inputs: list[torch.Tensor] = []
        if (mixture := spec_of(model).layers[layer].mlp) and mixture.selection_bias:
            model.model.layers[layer].feed_forward.expert_bias.zero_()
        hook = router.register_forward_pre_hook(
            lambda _, given, seen=inputs: seen.append(given[0].flatten(0, -2))
        )
        with torch.inference_mode():
            model(input_ids=tokens, use_cache=False)
        hook.remove()
        rows = inputs[0].double()
        with torch.no_grad():
            row = torch.linalg.lstsq(rows, torch.full((len(rows),), -60.0).double()).solution
            router.weight[expert] = row.float()


def test_an_expert_that_is_never_chosen_is_removed(teacher: Any) -> None:
    model, tokens = copy.deepcopy(teacher), TOKENS
    never_choose(model, tokens, expert=2)
    importance = score(model, [tokens])
    student = prune(model, smaller(model, num_experts=5), importance)
    kept = select_indices(spec_of(model), smaller(model, num_experts=5), importance)
    for experts in kept.experts:
        assert experts is None or experts.experts.tolist() == [0, 1, 3, 4, 5]
    with torch.inference_mode():
        expected, ours = (one(input_ids=tokens).logits for one in (model, student))
    assert_near(ours, expected)


def test_neurons_without_weights_are_removed(teacher: Any) -> None:
    """Of each expert others; and of the shared expert."""
    model, spec = copy.deepcopy(teacher), spec_of(teacher)
    by_input = stacked_by_input(spec.family)
    mixture = mixture_of(spec)
    assert mixture is not None
    size, kept = mixture.size - 4, {}
    generator = torch.Generator().manual_seed(3)
    for layer in sparse_layers(model):
        experts = stacks(model, layer)
        for expert in range(6):
            order = torch.randperm(mixture.size, generator=generator)
            kept[layer, expert] = order[4:].sort().values.tolist()
            rows = experts.gate_up_proj[expert].T if by_input else experts.gate_up_proj[expert]
            gate = 2 * order[:4] if by_input else order[:4]
            with torch.no_grad():
                rows[gate] = 0
                if mixture.biases:
                    experts.gate_up_proj_bias[expert, gate] = 0
    importance = score(model, [TOKENS])
    shape = smaller(model, moe_intermediate_size=size)
    for layer, experts in enumerate(select_indices(spec, shape, importance).experts):
        for expert in range(6 if experts else 0):
            reached = importance.experts is not None and importance.experts[layer, expert] > 1e-6
            assert experts is not None
            assert not reached or experts.neurons[expert].tolist() == kept[layer, expert]
    assert_near(logits(prune(model, shape, importance)), logits(model))


def masked(teacher: Any, student: Any, shape: Shape, importance: Importance) -> Any:
    """The teacher with the weights of removed neurons at zero, and with the student's choices."""
    model, spec = copy.deepcopy(teacher), spec_of(teacher)
    kept, by_input = select_indices(spec, shape, importance), stacked_by_input(spec.family)
    for layer, experts in enumerate(kept.experts):
        if size := mlp_neurons(spec, spec.layers[layer]):
            name = "mlp.shared_expert.down_proj" if experts else "mlp.down_proj"
            gone = torch.ones(size, dtype=torch.bool)
            gone[kept.neurons[layer]] = False
            with torch.no_grad():
                submodule(model, layer, name).weight[:, gone] = 0
        if experts is None:
            continue
        down = stacks(model, layer).down_proj
        for expert, neurons in zip(experts.experts, experts.neurons, strict=True):
            gone = torch.ones(down.shape[1 if by_input else 2], dtype=torch.bool)
            gone[neurons] = False
            with torch.no_grad():
                (down[expert].T if by_input else down[expert])[:, gone] = 0
        _choose_like(
            submodule(model, layer, "mlp.router"),
            submodule(student, layer, "mlp.router"),
            experts.experts,
            spec.mixtures[0].selection_bias,
        )
    return model


def _choose_like(router: Any, other: Any, kept: torch.Tensor, has_bias: bool) -> None:
    def forward(hidden: torch.Tensor, *bias: torch.Tensor) -> Any:
        own = [one[kept] for one in bias] if has_bias else bias
        scores, weights, chosen = other(hidden, *own)
        return scores, weights, kept[chosen]

    router.forward = forward


def test_equals_the_masked_teacher(teacher: Any) -> None:
    importance = random_importance(teacher)
    spec = spec_of(teacher)
    sizes = {"num_experts": 3, "moe_intermediate_size": 20}
    if "intermediate_size" not in fixed_sizes(spec):
        sizes["intermediate_size"] = 40
    shape = smaller(teacher, **sizes)
    student = prune(teacher, shape, importance)
    assert_near(logits(student), logits(masked(teacher, student, shape, importance)))


def test_a_token_runs_no_more_experts_than_remain(teacher: Any) -> None:
    importance = random_importance(teacher)
    shape = smaller(teacher, num_experts=1)
    student = prune(teacher, shape, importance)
    mixture = mixture_of(spec_of(student))
    assert mixture is not None
    assert (mixture.experts, mixture.top_k) == (1, 1)
    assert_near(logits(student), logits(masked(teacher, student, shape, importance)))


def test_student_loads_without_us(teacher: Any, tmp_path: Path) -> None:
    """All axes that the family has at once, the first layer removed."""
    spec = spec_of(teacher)
    wanted = {
        "num_hidden_layers": spec.num_hidden_layers - 1,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_experts": 4,
        "moe_intermediate_size": 24,
        "num_attention_heads": spec.num_key_value_heads,
    }
    if FAMILIES[spec.family].derived_heads:
        wanted |= {"num_attention_heads": 2, "hidden_size": 2 * spec.head_dim}
    sizes = {field: size for field, size in wanted.items() if field not in fixed_sizes(spec)}
    if heads := following_mamba_heads(spec, sizes["hidden_size"]):
        sizes["mamba_num_heads"] = heads
    shape = smaller(teacher, **sizes)
    kept = range(1, spec.num_hidden_layers)
    student = prune(teacher, shape, random_importance(teacher), layers=list(kept))
    found = Shape.from_spec(spec_of(student))
    if "intermediate_size" in fixed_sizes(spec):
        found = msgspec.structs.replace(found, intermediate_size=shape.intermediate_size)
    assert found == shape
    assert [layer.mlp is None for layer in spec_of(student).layers] == [
        spec.layers[layer].mlp is None for layer in kept
    ]
    assert spec_of(student).parameters == sum(
        parameter.numel() for parameter in student.parameters()
    )
    check_saves(student, tmp_path, logits)
    estimated = shape.applied_to(spec)
    assert estimated.mixtures[-1] == spec_of(student).mixtures[-1]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("qwen3-moe", {"num_experts": 7}, "cannot prune num_experts to 7; expected 1 to 6"),
        ("olmoe", {"intermediate_size": 40}, "no MLP but experts, whose size is moe_intermediate"),
        ("llama", {"num_experts": 2}, "cannot prune num_experts of llama: it has no experts"),
    ],
)
def test_sizes_that_cannot_be(name: str, change: dict[str, int], message: str) -> None:
    model = tiny_model(name)
    with pytest.raises(BadInput, match=message):
        prune(model, smaller(model, **change), random_importance(model))


def test_scores_that_lack_experts() -> None:
    model = tiny_model("qwen3-moe")
    scores = score(model, [TOKENS])
    older = Importance(scores.heads, scores.neurons, scores.channels, scores.layers)
    prune(model, smaller(model, num_attention_heads=2), older)
    with pytest.raises(BadInput, match="cannot prune num_experts: these importance scores are of"):
        prune(model, smaller(model, num_experts=2), older)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, path = tiny_model("granite-hybrid-moe"), tmp_path / "importance.safetensors"
    importance = score(model, [TOKENS])
    importance.save(path)
    loaded = Importance.load(path)
    for field, scores in vars(importance).items():
        assert (scores is None) == (getattr(loaded, field) is None)
        assert scores is None or torch.equal(getattr(loaded, field), scores)
    other = spec_of(tiny_model("granite-hybrid-moe", num_local_experts=4))
    with pytest.raises(BadInput, match=r"experts \(3, 6\), this one has \(3, 4\); score it again"):
        loaded.check(other)
