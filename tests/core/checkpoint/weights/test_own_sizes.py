"""Checkpoints of students whose layers have sizes of their own: padded files, compact tensors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from edgelm.checkpoint.source import open_checkpoint, read_spec
from edgelm.compress.model import load_model
from edgelm.errors import BadCheckpoint
from edgelm.spec.layers.mixers import NoMixer
from edgelm.spec.own_sizes import own_sizes
from tests.checkpoints.own_sizes import FEWER_HEADS, OWN, own_sizes_model, save_own_sizes

FAMILIES = ["llama", "llama-untied", "qwen3", "phi3", "gemma3", "olmo2", "granite", "lfm2"]


@pytest.mark.parametrize("family", [*FAMILIES, "qwen3.5", "apertus"])
def test_transformers_loads_the_padded_file_and_edgelm_the_layers_own(
    tmp_path: Path, family: str
) -> None:
    _check_same(save_own_sizes(family, tmp_path))


@pytest.mark.parametrize(
    "family",
    [
        *("llama-untied", "qwen2", "qwen3", "qwen3.5-keys", "phi3", "gemma2", "gpt-neox"),
        *("stablelm", "granite-swa", "lfm2", "seed-oss"),
    ],
)
def test_layers_with_fewer_heads(tmp_path: Path, family: str) -> None:
    folder = save_own_sizes(family, tmp_path, FEWER_HEADS)
    _check_same(folder)
    spec = read_spec(folder)
    first, last = (spec.layers[index] for index in (spec.attention_layers[0], -1))
    queries = spec.num_attention_heads // spec.num_key_value_heads
    if spec.layers[0].attends:
        assert spec.heads(first) == (queries, 1, spec.head_dim)
    assert spec.heads(last)[:2] == (spec.num_attention_heads, spec.num_key_value_heads)
    assert spec.has_layer_heads
    assert own_sizes(spec) == json.loads((folder / "config.json").read_text())["edgelm_layers"]


def _check_same(folder: Path) -> None:
    ours, plain = load_model(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = torch.randint(3, 100, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ours(tokens).logits, plain(tokens).logits, rtol=0, atol=1e-6)
        written = [
            model.generate(tokens[:1], max_new_tokens=8, do_sample=False) for model in (ours, plain)
        ]
    assert torch.equal(*written), "the cache counts tokens, also where layer 0 has no attention"
    parameters = sum(one.numel() for one in ours.parameters())
    assert parameters == read_spec(folder).parameters
    assert parameters < sum(one.numel() for one in plain.parameters())


@pytest.mark.parametrize(
    "family", ["llama", "gemma3", "olmo2", "lfm2", "starcoder2", "stablelm-parallel"]
)
@pytest.mark.parametrize("own", [OWN, FEWER_HEADS], ids=["none", "fewer"])
def test_what_gets_no_gradient_is_not_trained(family: str, own: list[dict[str, Any]]) -> None:
    """With several processes, all of them wait for every gradient."""
    if family == "olmo2" and own is FEWER_HEADS:
        pytest.skip("its layers cannot have fewer heads")
    model = own_sizes_model(family, own).train()
    model(torch.arange(3, 20)[None]).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_the_spec_of_every_layer(tmp_path: Path) -> None:
    spec = read_spec(save_own_sizes("llama", tmp_path))
    assert [layer.attends for layer in spec.layers] == [False, True, True, False]
    assert [spec.mlp_size(layer) for layer in spec.layers] == [32, 96, 0, 96]
    assert isinstance(spec.layers[0].mixer, NoMixer)
    assert spec.attention_layers == (1, 2)
    assert not spec.is_hybrid
    assert own_sizes(spec) == OWN
    assert spec.executed_layers == 2.5
    assert [layer.rope is None for layer in spec.layers] == [True, False, False, True]
    shapes = open_checkpoint(tmp_path).shapes
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (64, 32)
    assert not any(name.startswith("model.layers.0.self_attn") for name in shapes)


def test_a_file_without_padding_is_read_too(tmp_path: Path) -> None:
    """Other programs save the model as it is in memory."""
    model = own_sizes_model("phi3")
    model.save_pretrained(tmp_path)
    tokens = torch.arange(3, 20)[None]
    with torch.inference_mode():
        assert torch.equal(load_model(tmp_path)(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("own", [OWN, FEWER_HEADS], ids=["none", "fewer"])
@pytest.mark.parametrize("module", ["self_attn.o_proj", "mlp.down_proj"])
def test_weights_in_the_padding_are_refused(
    tmp_path: Path, module: str, own: list[dict[str, Any]]
) -> None:
    """transformers would compute with them, and a bundle without."""
    path = save_own_sizes("llama", tmp_path, own) / "model.safetensors"
    layer = 1 if own is FEWER_HEADS else 0
    name = f"model.layers.{layer}.{module}.weight"
    tensors = load_file(path)
    tensors[name][0, -1] = 0.5
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(BadCheckpoint, match=r"layers\.[01].* has nonzero weights in a part that"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ([{}], "edgelm_layers has 1 entries, expected one for each of 4 layers"),
        ([{}, {}, {"window": 4}, {}], r"edgelm_layers\[2\] is .*, expected an object of attention"),
        ([{}, {}, 3, {}], r"edgelm_layers\[2\] is 3, expected an object"),
        ([{"intermediate_size": 97}, {}, {}, {}], r"\[0\]: intermediate_size is 97, expected"),
        ([{"attention": 0}, {}, {}, {}], r"\[0\]: attention is 0, expected true or false"),
        ([{"attention": False}] * 4, "leaves no layer its attention"),
        ([{"num_key_value_heads": 3}, {}, {}, {}], r"\[0\]: num_key_value_heads is 3, expected"),
        (
            [{"attention": False, "num_key_value_heads": 1}, {}, {}, {}],
            r"\[0\]: num_key_value_heads is 1, and the layer has no attention",
        ),
    ],
)
def test_descriptions_that_are_refused(tmp_path: Path, own: list[Any], message: str) -> None:
    path = save_own_sizes("llama", tmp_path) / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"edgelm_layers": own}))
    with pytest.raises(BadCheckpoint, match=message):
        read_spec(tmp_path)


def test_norms_over_all_heads_leave_no_choice(tmp_path: Path) -> None:
    path = save_own_sizes("olmo2", tmp_path) / "config.json"
    config = json.loads(path.read_text())
    own = [{}, {"num_key_value_heads": 1}, {}, {}]
    path.write_text(json.dumps(config | {"edgelm_layers": own}))
    with pytest.raises(BadCheckpoint, match="queries and keys are normed over all heads together"):
        read_spec(tmp_path)
