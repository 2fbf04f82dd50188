"""Pruning against the teacher with the cut parts masked, on every family."""

import copy
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM

from edgelm.checkpoint.source import open_checkpoint
from edgelm.compress.model import load_model, save_model, spec_of
from edgelm.compress.pruning.axes import FFN, HIDDEN, tensor_axes
from edgelm.compress.pruning.importance import Importance, score
from edgelm.compress.pruning.indices import PruneIndices, select_indices
from edgelm.compress.pruning.layer_removal import without_layers
from edgelm.compress.pruning.prune import prune
from edgelm.compress.pruning.shape import Shape
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.families.table import FAMILIES
from edgelm.spec.prunable import (
    fixed_sizes,
    following_mamba_heads,
    has_short_convs,
    lasting_layers,
    mamba_of,
    pruned_mlp_size,
)
from edgelm.spec.tensor_names import stored_name
from tests.checkpoints.models import DENSE, REPRESENTATIVE, tiny_model
from tests.compress.tokenizers import tiny_fast_tokenizer
from tests.conftest import TinyFactory
from tests.slow import slow_but

TOKENS = torch.randint(0, 128, (2, 24), generator=torch.Generator().manual_seed(1))


def random_importance(model: Any, seed: int = 0) -> Importance:
    spec = spec_of(model)
    mamba, convs = mamba_of(spec), has_short_convs(spec)
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    return Importance(
        heads=rand(spec.num_hidden_layers, spec.num_attention_heads),
        neurons=rand(spec.num_hidden_layers, spec.mlp_width),
        channels=rand(spec.hidden_size),
        layers=rand(spec.num_hidden_layers),
        mamba_heads=rand(spec.num_hidden_layers, mamba.heads) if mamba else None,
        conv_channels=rand(spec.num_hidden_layers, spec.hidden_size) if convs else None,
    )


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=TOKENS, use_cache=False).logits  # type: ignore[no-any-return]


def masked(teacher: Any, kept: PruneIndices) -> Any:
    """The teacher in its own shape, with everything that is not kept switched off."""
    model = copy.deepcopy(teacher)
    spec = spec_of(teacher)
    width = spec.hidden_size

    def off(kept_indices: torch.Tensor, total: int) -> torch.Tensor:
        gone = torch.ones(total, dtype=torch.bool)
        gone[kept_indices] = False
        return gone

    channels = off(kept.channels, width)
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table[:, channels] = 0
        written = [name for name, _ in model.named_parameters() if _writes_stream(spec, name)]
        for name in written:
            model.get_parameter(name)[channels] = 0
        for index, layer in enumerate(model.base_model.layers):
            if index not in kept.layers:
                continue
            position = kept.layers.index(index)
            prefix, own = f"model.layers.{index}", spec.layers[index]
            if size := spec.mlp_size(own):
                neurons = off(kept.neurons[position], size)
                down = model.get_submodule(stored_name(spec.family, f"{prefix}.mlp.down_proj"))
                down.weight[:, neurons] = 0
            if own.attends:
                heads = off(kept.heads[position], spec.num_attention_heads)
                output = stored_name(spec.family, f"{prefix}.self_attn.o_proj")
                weight = model.get_submodule(output).weight
                weight[:, heads.repeat_interleave(spec.heads(own).dim)] = 0
            if (channels_kept := kept.conv_channels[position]) is not None:
                gone = off(channels_kept, width)
                layer.conv.out_proj.weight[:, gone] = 0
            if (mamba_kept := kept.mamba_heads[position]) is not None:
                _mask_mamba(model, spec, index, mamba_kept)
            if spec.qk_norm == "full":
                _mask_full_norms(
                    layer, spec, heads, off(kept.groups[position], spec.num_key_value_heads)
                )
    return model


def _mask_mamba(model: Any, spec: DecoderSpec, layer: int, kept: torch.Tensor) -> None:
    """Nothing reaches the other heads, so that a norm over several heads has zeros of them."""
    own = mamba_of(spec)
    assert own is not None
    gone = torch.ones(own.heads, dtype=torch.bool)
    gone[kept] = False
    name = stored_name(spec.family, f"model.layers.{layer}.mamba.dt_bias")
    module = model.get_submodule(name.rpartition(".")[0])
    channels = gone.repeat_interleave(own.head_dim).nonzero().flatten()
    module.in_proj.weight[own.size + channels] = 0
    for bias, start in ((module.in_proj.bias, own.size), (module.conv1d.bias, 0)):
        if bias is not None:
            bias[start + channels] = 0


def _writes_stream(spec: DecoderSpec, name: str) -> bool:
    """Whether a parameter's rows are channels of the residual stream; norms only scale them."""
    axes = tensor_axes(spec, name)
    return axes[0] == (HIDDEN,) and "norm" not in name


def without_epsilon(model: Any) -> Any:
    """Norms that divide by the mean square alone: it weighs more over more channels."""
    for module in model.modules():
        for name in ("variance_epsilon", "eps"):
            if isinstance(getattr(module, name, None), float):  # xIELU's is a tensor
                setattr(module, name, 1e-20)
    return model


def _mask_full_norms(layer: Any, spec: Any, heads: Any, groups: Any) -> None:
    """OLMo 2 norms all heads together: cut heads are zero before it too."""
    for projection, gone in (("q_proj", heads), ("k_proj", groups)):
        getattr(layer.self_attn, projection).weight[gone.repeat_interleave(spec.head_dim)] = 0


CUTS = {
    "depth": {"num_hidden_layers": 3},
    "ffn": {"intermediate_size": 40},
    "hidden": {"hidden_size": 48},
    "heads": {"num_attention_heads": 2},
    "groups": {"num_attention_heads": 2, "num_key_value_heads": 1},
    "all": {
        "num_hidden_layers": 2,
        "intermediate_size": 56,
        "hidden_size": 40,
        "num_attention_heads": 2,
    },
}


def _cases() -> list[Any]:
    """Every family with all cuts at once; one cut alone, which says where a fault is, on some."""
    every = [(name, cut) for name in DENSE for cut in ("all", "groups")]
    alone = [(name, cut) for name in ("llama", "olmo2", "lfm2", "gemma3n") for cut in CUTS]
    quick = [(name, cut) for name, cut in every if cut == "all" or name in REPRESENTATIVE]
    return slow_but(dict.fromkeys(every + alone), [*quick, *alone])


def with_heads(shape: Shape, spec: DecoderSpec, count: int | None = None) -> Shape:
    """A shape with `count` heads of the model's size, by default all, as wide as they are."""
    heads = count or spec.num_attention_heads
    groups = spec.num_key_value_heads if count is None else shape.num_key_value_heads
    groups = heads if spec.qkv_by_head else groups
    return msgspec.structs.replace(
        shape,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        hidden_size=heads * spec.head_dim,
    )


def cut_shape(spec: DecoderSpec, cut: str) -> Shape:
    """The shape of a cut, of which sizes stay that this model's pruning cannot change."""
    full = Shape.from_spec(spec)
    sizes = {field: size for field, size in CUTS[cut].items() if field not in fixed_sizes(spec)}
    if "num_hidden_layers" in sizes:
        least = max(sizes["num_hidden_layers"], len(lasting_layers(spec)) + 1)
        sizes["num_hidden_layers"] = min(least, spec.num_hidden_layers - 1)
    if mamba_of(spec) is not None:
        widths = range(sizes.get("hidden_size", spec.hidden_size), spec.hidden_size + 1, 8)
        following = ((width, following_mamba_heads(spec, width)) for width in widths)
        width, heads = next((width, heads) for width, heads in following if heads is not None)
        sizes |= {"hidden_size": width, "mamba_num_heads": heads}
    return msgspec.structs.replace(full, **sizes)


def without_sparsity(model: Any) -> Any:
    """Gemma 3n without the cutoff over all gates, which a masked neuron is still a part of."""
    if hasattr(model.config, "activation_sparsity_pattern"):
        model.config.activation_sparsity_pattern = [0.0] * model.config.num_hidden_layers
        for layer in model.base_model.layers:
            layer.mlp.activation_sparsity = 0.0
    return model


@pytest.mark.parametrize(("name", "cut"), _cases())
def test_equals_the_masked_teacher(calm: TinyFactory, name: str, cut: str) -> None:
    teacher = without_sparsity(load_model(calm(name).folder))
    spec = spec_of(teacher)
    shape = cut_shape(spec, cut)
    if spec.layer_norm:  # a mean over fewer channels differs
        shape = msgspec.structs.replace(shape, hidden_size=spec.hidden_size)
    if FAMILIES[spec.family].derived_heads:
        shape = with_heads(shape, spec)
    importance = random_importance(teacher)
    student = prune(teacher, shape, importance, merge_pruned_heads=False)
    kept = select_indices(spec_of(teacher), shape, importance, merge_pruned_heads=False)
    reference = without_epsilon(masked(teacher, kept))
    removed = set(range(spec.num_hidden_layers)) - set(kept.layers)
    with without_layers(reference, removed):
        expected = logits(reference)
    widest = max(map(len, kept.neurons)) if spec.lists_mlp_sizes else shape.intermediate_size
    expected_shape = msgspec.structs.replace(shape, intermediate_size=widest)
    assert Shape.from_spec(spec_of(student)) == expected_shape
    torch.testing.assert_close(
        logits(without_epsilon(student)), expected, rtol=0, atol=1e-4 * float(expected.abs().max())
    )


@pytest.mark.parametrize("name", slow_but(DENSE, REPRESENTATIVE))
def test_full_shape_is_the_identity(tiny: TinyFactory, name: str) -> None:
    teacher = load_model(tiny(name).folder)
    student = prune(teacher, Shape.from_spec(spec_of(teacher)), random_importance(teacher))
    theirs = teacher.state_dict()
    assert student.state_dict().keys() == theirs.keys()
    for key, tensor in student.state_dict().items():
        assert torch.equal(tensor, theirs[key]), key
        assert tensor.data_ptr() != theirs[key].data_ptr(), "the teacher's own memory"
    assert torch.equal(logits(student), logits(teacher))


@pytest.mark.parametrize("name", slow_but(DENSE, REPRESENTATIVE))
def test_student_loads_without_us(tiny: TinyFactory, tmp_path: Path, name: str) -> None:
    teacher = load_model(tiny(name).folder)
    before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    shape = cut_shape(spec_of(teacher), "all")
    if FAMILIES[spec_of(teacher).family].derived_heads:
        shape = with_heads(shape, spec_of(teacher), 2)
    student = prune(teacher, shape, random_importance(teacher))
    save_model(student, tiny_fast_tokenizer(), tmp_path, torch.float32)
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation=student.config._attn_implementation
    ).eval()
    torch.testing.assert_close(logits(loaded), logits(student), rtol=0, atol=1e-5)
    assert open_checkpoint(tmp_path).config["head_dim"] == spec_of(teacher).head_dim
    assert all(torch.equal(tensor, before[key]) for key, tensor in teacher.state_dict().items())


@pytest.mark.parametrize(
    "name", ["llama", "nemotron-h", "falcon-h1-norm", "gemma3n", "gemma4", "granite-hybrid"]
)
def test_neurons_without_weights_are_removed(calm: TinyFactory, name: str) -> None:
    teacher = without_sparsity(load_model(calm(name).folder))
    spec, generator = spec_of(teacher), torch.Generator().manual_seed(5)
    shape = msgspec.structs.replace(Shape.from_spec(spec), intermediate_size=64)
    kept = {}
    for index, layer in enumerate(spec.layers):
        size = spec.mlp_size(layer)
        order = torch.randperm(size, generator=generator)
        kept[index], gone = order.split([after := pruned_mlp_size(spec, layer, 64), size - after])
        _switch_off(teacher, spec, index, gone)
    importance = score(teacher, [TOKENS])
    found = select_indices(spec, shape, importance).neurons
    for index, neurons in enumerate(found):
        assert neurons.tolist() == kept[index].sort().values.tolist(), f"layer {index}"
    expected = logits(teacher)
    student = logits(prune(teacher, shape, importance))
    # The same sums without the zeros, in another order.
    torch.testing.assert_close(student, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def _switch_off(model: Any, spec: DecoderSpec, layer: int, neurons: torch.Tensor) -> None:
    """Set all weights of neurons to zero."""
    size = spec.mlp_size(spec.layers[layer])
    state = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in state.items():
            if f".layers.{layer}." not in name:
                continue
            for dimension, axis in enumerate(tensor_axes(spec, name)):
                for stacked, part in enumerate(axis):
                    if part == FFN:
                        parameter.index_fill_(dimension, neurons + stacked * size, 0)


def test_heads_that_are_stored_side_by_side() -> None:
    """GPT-NeoX stores query, key and value of a head, then those of the next."""
    teacher = tiny_model("gpt-neox")
    shape = with_heads(Shape.from_spec(spec_of(teacher)), spec_of(teacher), 3)
    importance = random_importance(teacher)
    kept = select_indices(spec_of(teacher), shape, importance)
    student = prune(teacher, shape, importance)
    for index in range(shape.num_hidden_layers):
        old, new = (
            one.base_model.layers[index].attention.query_key_value for one in (teacher, student)
        )
        rows = old.weight.unflatten(0, (4, 3, 16))[kept.heads[index]][..., kept.channels]
        assert torch.equal(new.weight, rows.flatten(0, 2))
        assert torch.equal(new.bias, old.bias.view(4, 48)[kept.heads[index]].flatten())


def test_biases_of_norms_are_cut_and_not_scaled() -> None:
    """A norm's weight corrects for the width; what is added to it does not depend on that."""
    teacher = tiny_model("starcoder2")
    shape = msgspec.structs.replace(Shape.from_spec(spec_of(teacher)), hidden_size=48)
    importance = random_importance(teacher)
    kept = select_indices(spec_of(teacher), shape, importance).channels
    student = prune(teacher, shape, importance).model.norm
    norm = teacher.model.norm
    assert torch.equal(student.bias, norm.bias[kept])
    torch.testing.assert_close(student.weight, norm.weight[kept] * (64 / 48) ** 0.5)


def test_four_channels_by_hand() -> None:
    """Each axis of a decoder of width four, with scores that leave one choice."""
    teacher = tiny_model(
        "qwen3",
        hidden_size=4,
        intermediate_size=4,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=2,
        vocab_size=8,
    )
    importance = Importance(
        heads=torch.tensor([[1.0, 2, 4, 3]] * 4),
        neurons=torch.tensor([[4.0, 1, 3, 2]] * 4),
        channels=torch.tensor([1.0, 9, 5, 7]),
        layers=torch.tensor([0.9, 0.1, 0.2, 0.8]),
    )
    student = prune(teacher, Shape(2, 3, 2, 2, 2), importance, merge_pruned_heads=False)
    kept = select_indices(
        spec_of(teacher), Shape(2, 3, 2, 2, 2), importance, merge_pruned_heads=True
    )
    assert kept.layers == (0, 3)
    assert kept.channels.tolist() == [1, 2, 3]
    assert kept.heads[0].tolist() == [1, 2], "the stronger of each group of two"
    assert kept.merged[0] == ((1, 0), (2, 3))
    theirs, ours = teacher.model.layers[3], student.model.layers[1]
    columns = [1, 2, 3]
    assert torch.equal(ours.mlp.gate_proj.weight, theirs.mlp.gate_proj.weight[[0, 2]][:, columns])
    assert torch.equal(ours.mlp.down_proj.weight, theirs.mlp.down_proj.weight[columns][:, [0, 2]])
    q_rows = [2, 3, 4, 5]
    assert torch.equal(
        ours.self_attn.q_proj.weight, theirs.self_attn.q_proj.weight[q_rows][:, columns]
    )
    assert torch.equal(ours.self_attn.k_proj.weight, theirs.self_attn.k_proj.weight[:, columns])
    assert torch.equal(
        ours.self_attn.o_proj.weight, theirs.self_attn.o_proj.weight[columns][:, q_rows]
    )
    one_group = select_indices(spec_of(teacher), Shape(4, 4, 4, 2, 1), importance)
    assert one_group.groups[0].tolist() == [1], "3 + 4 beats 1 + 2"


def test_pruned_heads_are_merged_into_kept_ones() -> None:
    teacher = tiny_model("qwen3", num_attention_heads=4, num_key_value_heads=1, head_dim=4)
    importance = Importance(
        heads=torch.tensor([[4.0, 3, 2, 1]] * 4),
        neurons=torch.ones(4, 96),
        channels=torch.ones(64),
        layers=torch.ones(4),
    )
    shape = Shape(4, 64, 96, 3, 1)
    student = prune(teacher, shape, importance, merge_pruned_heads=True)
    old = teacher.model.layers[0].self_attn.q_proj.weight.unflatten(0, (4, 4))
    new = student.model.layers[0].self_attn.q_proj.weight.unflatten(0, (3, 4))
    # K = 3 of L = 4: only rank 3 has a partner, rank 4.
    assert torch.equal(new[:2], old[:2])
    assert torch.equal(new[2], 2 * old[2] - old[3])


def test_importance_of_a_real_pass_prunes(tiny: TinyFactory) -> None:
    teacher = tiny("llama").hf
    importance = score(teacher, [TOKENS])
    shape = Shape(3, 48, 64, 4, 2)
    assert torch.isfinite(logits(prune(teacher, shape, importance))).all()
