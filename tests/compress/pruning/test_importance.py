"""Scores by hand, against activations recomputed with hooks, and streaming."""

import gc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgelm.compress.model import spec_of
from edgelm.compress.pruning.aggregation import Aggregation, Reduction
from edgelm.compress.pruning.importance import Importance, reduce_sequence, score
from edgelm.errors import BadInput
from edgelm.spec.tensor_names import canonical_name
from tests.checkpoints.models import DENSE, tiny_config, tiny_model
from tests.conftest import TinyFactory

TOKENS = torch.randint(0, 128, (4, 12), generator=torch.Generator().manual_seed(1))
REDUCTIONS: tuple[Reduction, ...] = ("mean", "l2", "var")
# Activations of two parts at tokens 0 to 3. Two sequences of two tokens: the first part sees
# [1, -3] and [6, 2], the second [0, -4] and [0, 4].
ACTIVATIONS = torch.tensor([[1.0, 0.0], [-3.0, -4.0], [6.0, 0.0], [2.0, 4.0]])
SEQUENCES = torch.tensor([[0, 1], [2, 3]])
BY_HAND: dict[tuple[Reduction, Reduction], tuple[float, float]] = {
    # Of the sequences: 2 and 4; 2 and 2.
    ("mean", "mean"): (3.0, 2.0),
    ("mean", "l2"): (20**0.5, 8**0.5),
    ("mean", "var"): (1.0, 0.0),
    # √10 and √40; 4 and 4.
    ("l2", "mean"): (1.5 * 10**0.5, 4.0),
    ("l2", "l2"): (50**0.5, 32**0.5),
    ("l2", "var"): (2.5, 0.0),
    # 4 and 4; 4 and 4.
    ("var", "mean"): (4.0, 4.0),
    ("var", "l2"): (32**0.5, 32**0.5),
    ("var", "var"): (0.0, 0.0),
}


class _Layer(nn.Module):
    """Hands the same activations to every place that is watched."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm = nn.Identity()
        self.self_attn = nn.ModuleDict({"o_proj": nn.Identity()})
        self.mlp = nn.ModuleDict({"down_proj": nn.Identity()})

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.input_layernorm(hidden_states)
        for watched in (self.self_attn["o_proj"], self.mlp["down_proj"]):
            watched(hidden)
        return torch.stack([hidden[..., 0], torch.zeros_like(hidden[..., 0])], -1)


class _Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_Layer()])

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> torch.Tensor:
        hidden: torch.Tensor = self.layers[0](ACTIVATIONS[input_ids])
        return hidden


class HandMade(nn.Module):
    """A decoder of one layer whose activations are known: those of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.model = self.base_model = _Decoder()
        self.device = torch.device("cpu")
        self.config = tiny_config(
            "llama",
            num_hidden_layers=1,
            hidden_size=2,
            intermediate_size=2,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=2,
        )


@pytest.mark.parametrize("samples", REDUCTIONS)
@pytest.mark.parametrize("tokens", REDUCTIONS)
def test_aggregations_by_hand(tokens: Reduction, samples: Reduction) -> None:
    importance = score(HandMade(), [SEQUENCES], Aggregation(tokens, samples))
    expected = torch.tensor(BY_HAND[tokens, samples])
    torch.testing.assert_close(importance.neurons, expected[None])
    torch.testing.assert_close(importance.channels, expected)


def test_tokens_are_reduced_before_samples() -> None:
    """[batch, sequence] taken for [sequence, batch] would be another, worse score."""
    importance = score(HandMade(), [SEQUENCES])
    first = ACTIVATIONS[SEQUENCES][..., 0].abs()
    swapped = float(first.square().sum(0).sqrt().mean())
    assert swapped == pytest.approx((37**0.5 + 13**0.5) / 2)
    assert float(importance.neurons[0, 0]) == pytest.approx(20**0.5)
    assert abs(swapped - 20**0.5) > 0.3


def test_heads_and_layer_by_hand() -> None:
    importance = score(HandMade(), [SEQUENCES])
    # Norms of the head's two dimensions: 1, 5 and 6, √20; their means 3 and 3 + √5.
    heads = (9 + (3 + 5**0.5) ** 2) ** 0.5
    assert float(importance.heads[0, 0]) == pytest.approx(heads)
    # The layer zeroes the second channel: cosines 1, 3/5, 1 and 2/√20.
    influence = 1 - (1 + 0.6 + 1 + 1 / 5**0.5) / 4
    assert float(importance.layers[0]) == pytest.approx(influence)


def test_reductions_over_tokens_by_hand() -> None:
    values = torch.tensor([[[1.0, -3.0], [3.0, 4.0]]])
    torch.testing.assert_close(reduce_sequence(values, "mean"), torch.tensor([[2.0, 3.5]]))
    torch.testing.assert_close(reduce_sequence(values, "l2"), torch.tensor([[10**0.5, 5.0]]))
    torch.testing.assert_close(reduce_sequence(values, "var"), torch.tensor([[1.0, 12.25]]))


def recomputed(model: Any, tokens: torch.Tensor) -> Importance:
    """All scores from activations of the whole batch, each part on its own."""
    spec = spec_of(model)
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: Any, inputs: Any, output: Any) -> None:
            for key, values in ((name, inputs[0]), (f"{name} out", output)):
                # Gemma 3n calls a norm twice: the second call counts as further samples.
                seen[key] = torch.cat([seen[key], values]) if key in seen else values

        return hook

    norms = ("layernorm", "model.norm", "router_norm", "laurel_norm", "per_layer_input_norm")
    names = ("self_attn.o_proj", "mlp.down_proj", "mlp.gate_proj", *norms)
    hooks = [
        module.register_forward_hook(keep(name))
        for stored, module in model.named_modules()
        if (name := canonical_name(spec.family, stored)).endswith(names)
    ]
    with torch.inference_mode():
        states = list(
            model.base_model(tokens, use_cache=False, output_hidden_states=True).hidden_states
        )
    for hook in hooks:
        hook.remove()
    if spec.altup is None:  # transformers gives the last one after the final norm
        states[-1] = seen["model.norm"]

    def strength(activations: torch.Tensor) -> torch.Tensor:
        return activations.abs().mean(1).square().sum(0).sqrt()

    per_layer = [f"model.layers.{index}." for index in range(spec.num_hidden_layers)]
    heads = torch.zeros(len(per_layer), spec.num_attention_heads)
    neurons = torch.zeros(len(per_layer), max(map(spec.mlp_size, spec.layers)))
    gates = torch.zeros(len(per_layer), 2, neurons.shape[1])
    for index, layer in enumerate(per_layer):
        if (output := seen.get(f"{layer}self_attn.o_proj")) is not None:
            parts = output.split(spec.heads(spec.layers[index]).dim, -1)
            heads[index] = strength(torch.stack([part.norm(dim=-1) for part in parts], -1))
        if (inner := seen.get(f"{layer}mlp.down_proj")) is not None:
            neurons[index, : inner.shape[-1]] = strength(inner)
        if (gate := seen.get(f"{layer}mlp.gate_proj out")) is not None:
            moments = torch.stack([gate.mean((0, 1)), gate.square().mean((0, 1))])
            gates[index, :, : gate.shape[-1]] = moments
    outputs = [seen[name] for name in seen if name.endswith("norm out")]
    return Importance(
        heads=heads,
        neurons=neurons,
        channels=torch.stack([strength(norm) for norm in outputs]).sum(0),
        layers=torch.stack(
            [
                1 - torch.cosine_similarity(before, after, dim=-1).mean()
                for before, after in pairwise(states)
            ]
        ),
        gates=gates if spec.family == "gemma3n_text" else None,
    )


@pytest.mark.parametrize("name", DENSE)
def test_every_family_against_hooks(tiny: TinyFactory, name: str) -> None:
    model = tiny(name).hf
    ours, theirs = score(model, [TOKENS]), recomputed(model, TOKENS)
    assert (ours.gates is None) == (theirs.gates is None)
    for field in ("heads", "neurons", "channels", "layers", "gates"):
        one, other = getattr(ours, field), getattr(theirs, field)
        if one is None:
            continue
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    ours.check(spec_of(model))


def test_a_layer_that_copies_has_no_influence() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.base_model.layers[2].self_attn.o_proj.weight.zero_()
        model.base_model.layers[2].mlp.down_proj.weight.zero_()
    layers = score(model, [TOKENS]).layers
    assert float(layers[2]) == pytest.approx(0, abs=1e-6)
    assert min(layers[0], layers[1], layers[3]) > 1e-3


@pytest.mark.parametrize("samples", REDUCTIONS)
def test_batches_of_one_equal_one_batch(tiny: TinyFactory, samples: Reduction) -> None:
    model, how = tiny("qwen3").hf, Aggregation(batch=samples)
    seen: list[int] = []
    streamed = score(model, TOKENS.split(1), how, seen.append)
    whole = score(model, [TOKENS], how)
    assert seen == [1, 2, 3, 4]
    for field in ("heads", "neurons", "channels", "layers"):
        torch.testing.assert_close(
            getattr(streamed, field), getattr(whole, field), rtol=1e-4, atol=1e-6
        )


def test_memory_does_not_grow_with_samples(tiny: TinyFactory) -> None:
    alive: list[int] = []

    def batches() -> Iterator[torch.Tensor]:
        for _ in range(12):
            yield TOKENS.clone()

    def count(samples: int) -> None:
        if samples in (8, 48):
            tensors = [one for one in gc.get_objects() if type(one) is torch.Tensor]
            alive.append(sum(one.numel() for one in tensors))

    score(tiny("llama").hf, batches(), progress=count)
    assert alive[0] == alive[1]


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("llama")
    with torch.inference_mode():
        before = model(TOKENS).logits
        score(model, [TOKENS])
        assert torch.equal(model(TOKENS).logits, before)
    no_such_token = torch.tensor([[128]])
    with pytest.raises(IndexError):
        score(model, [TOKENS, no_such_token])
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_no_text(tiny: TinyFactory) -> None:
    with pytest.raises(BadInput, match="no calibration text: importance scores need at least one"):
        score(tiny("llama").hf, [])


def test_groups_are_worth_their_heads() -> None:
    importance = Importance(
        heads=torch.tensor([[1.0, 2, 4, 8]]),
        neurons=torch.ones(1, 1),
        channels=torch.ones(1),
        layers=torch.ones(1),
    )
    assert importance.groups(2).tolist() == [[3.0, 12.0]]
    assert importance.groups(1).tolist() == [[15.0]]


def test_saved_and_loaded(tiny: TinyFactory, tmp_path: Path) -> None:
    model, path = tiny("llama").hf, tmp_path / "importance.safetensors"
    importance = score(model, [TOKENS])
    importance.save(path)
    loaded = Importance.load(path)
    for field in ("heads", "neurons", "channels", "layers"):
        assert torch.equal(getattr(loaded, field), getattr(importance, field))
    loaded.check(spec_of(model))


@pytest.mark.parametrize(
    ("over", "theirs"),
    [
        ({"num_hidden_layers": 3}, r"\(3, 4, 96, 64\)"),
        ({"intermediate_size": 80}, r"\(4, 4, 80, 64\)"),
        ({"hidden_size": 48}, r"\(4, 4, 96, 48\)"),
        ({"num_attention_heads": 2}, r"\(4, 2, 96, 64\)"),
    ],
)
def test_scores_of_another_model(tiny: TinyFactory, over: dict[str, int], theirs: str) -> None:
    importance = score(tiny("llama").hf, [TOKENS])
    message = rf"layers, heads, FFN, hidden\) \(4, 4, 96, 64\), this one has {theirs}; score it"
    with pytest.raises(BadInput, match=message):
        importance.check(spec_of(tiny_model("llama", **over)))


def test_damaged_scores(tiny: TinyFactory, tmp_path: Path) -> None:
    path = tmp_path / "importance.safetensors"
    score(tiny("llama").hf, [TOKENS]).save(path)
    whole, fields = path.read_bytes(), load_file(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        BadInput, match=r"importance\.safetensors does not hold importance scores \("
    ):
        Importance.load(path)
    save_file({"heads": fields["heads"], "noise": fields["layers"]}, path)
    with pytest.raises(BadInput, match="scores but heads, noise; score the model again"):
        Importance.load(path)
    with pytest.raises(BadInput, match=r"nowhere does not hold importance scores"):
        Importance.load(tmp_path / "nowhere")
