"""Names in the file and names of the decoder: prefixes, tied heads, what is left over."""

import shutil
from pathlib import Path

import pytest
import torch

from edgelm.checkpoint.source import open_checkpoint, read_spec
from edgelm.errors import BadCheckpoint
from tests.checkpoints.weight_folders import Tensors, edit_config, store, store_shards, tensors_of
from tests.conftest import TinyFactory

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def tied(tiny: TinyFactory, tmp_path: Path) -> Path:
    return shutil.copytree(tiny("llama").folder, tmp_path / "tied")


@pytest.fixture
def untied(tiny: TinyFactory, tmp_path: Path) -> Path:
    return shutil.copytree(tiny("llama-untied").folder, tmp_path / "untied")


def base(tensors: Tensors) -> Tensors:
    """Names as a base model saves them."""
    return {name.removeprefix("model."): values for name, values in tensors.items()}


def assert_same(folder: Path, expected: Tensors) -> None:
    checkpoint = open_checkpoint(folder)
    assert set(checkpoint.shapes) == set(expected)
    for name, values in expected.items():
        torch.testing.assert_close(checkpoint.tensor(name), values, rtol=0, atol=0)


def test_a_base_models_names(tied: Path) -> None:
    expected = tensors_of(tied)
    store(tied, base(expected))
    assert_same(tied, expected)


def test_a_base_models_names_beside_a_head(untied: Path) -> None:
    expected = tensors_of(untied)
    store(untied, base(expected))
    assert_same(untied, expected)


@pytest.mark.parametrize("older", ["without a prefix", "embed_out"])
@pytest.mark.parametrize("name", ["gpt-neox", "gpt-neox-sequential"])
def test_older_names_of_gpt_neox(tiny: TinyFactory, tmp_path: Path, name: str, older: str) -> None:
    """Its decoder is `gpt_neox`; Pythia's checkpoints call the head `embed_out`."""
    folder = shutil.copytree(tiny(name).folder, tmp_path / "model")
    source = tiny(name).checkpoint
    expected = {one: source.tensor(one) for one in source.shapes}
    if older == "embed_out":
        stored = {one.replace("lm_head.", "embed_out."): it for one, it in expected.items()}
        mask = torch.ones(1, 1, 8, 8, dtype=torch.bool)
        stored |= {"gpt_neox.layers.0.attention.bias": mask}
        stored |= {"gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9)}
        stored |= {"gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(2)}
    else:
        stored = {one.removeprefix("gpt_neox."): it for one, it in expected.items()}
    store(folder, stored)
    assert_same(folder, expected)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_biases_that_the_model_lacks(tiny: TinyFactory, tmp_path: Path, value: float) -> None:
    """Biases of zeros, such as Cohere 2's norms may have in their files, change nothing."""
    folder = shutil.copytree(tiny("cohere").folder, tmp_path / "model")
    expected = tensors_of(folder)
    extra = {"model.layers.1.input_layernorm.bias": torch.full((64,), value)}
    store(folder, expected | extra)
    if value:
        with pytest.raises(BadCheckpoint, match=r"1 tensors that do not fit .*input_layernorm"):
            open_checkpoint(folder)
    else:
        assert_same(folder, expected)


def test_a_base_models_names_in_shards(untied: Path) -> None:
    expected = tensors_of(untied)
    names = sorted(expected)
    parts = [{name: expected[name] for name in names[at::2]} for at in (0, 1)]
    store_shards(untied, base(parts[0]), parts[1])
    assert_same(untied, expected)


def test_a_head_with_the_prefix(untied: Path) -> None:
    expected = tensors_of(untied)
    tensors = dict(expected)
    tensors["model.lm_head.weight"] = tensors.pop(HEAD)
    store(untied, tensors)
    assert_same(untied, expected)


def test_a_tensor_under_both_names(tied: Path) -> None:
    tensors = tensors_of(tied)
    store(tied, tensors | {"norm.weight": tensors["model.norm.weight"]})
    with pytest.raises(BadCheckpoint, match=r"holds model\.norm\.weight twice, with and without"):
        open_checkpoint(tied)


def test_a_base_model_without_a_head(untied: Path) -> None:
    tensors = base(tensors_of(untied))
    del tensors[HEAD]
    store(untied, tensors)
    with pytest.raises(
        BadCheckpoint, match=r"lacks 1 of \d+ tensors, first 'lm_head.*does not tie"
    ):
        open_checkpoint(untied)


@pytest.mark.parametrize("prefixed", [True, False])
def test_only_the_head_of_a_tied_model(tied: Path, prefixed: bool) -> None:
    expected = tensors_of(tied)
    tensors = dict(expected)
    tensors[HEAD] = tensors.pop(EMBEDDING)
    store(tied, tensors if prefixed else base(tensors))
    assert_same(tied, expected)
    assert open_checkpoint(tied).spec.tie_word_embeddings


def test_a_head_that_is_the_embedding(tied: Path) -> None:
    tensors = tensors_of(tied)
    store(tied, tensors | {HEAD: tensors[EMBEDDING]})
    checkpoint = open_checkpoint(tied)
    assert checkpoint.spec.tie_word_embeddings
    assert read_spec(tied).tie_word_embeddings
    assert not checkpoint.has(HEAD)


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("change", ["last-value", "another", "type"])
def test_a_head_of_its_own_overrules_the_configuration(
    tied: Path, shards: bool, change: str
) -> None:
    tensors = tensors_of(tied)
    head = tensors[EMBEDDING].clone()
    if change == "last-value":
        head[-1, -1] += 1
    elif change == "another":
        head = head.flip(0)
    else:  # of another type it is read as it is, equal or not
        head = head.to(torch.bfloat16)
    if shards:
        store_shards(tied, tensors, {HEAD: head})
    else:
        store(tied, tensors | {HEAD: head})
    checkpoint = open_checkpoint(tied)
    assert not checkpoint.spec.tie_word_embeddings
    assert not read_spec(tied).tie_word_embeddings
    assert checkpoint.config["tie_word_embeddings"] is False
    torch.testing.assert_close(checkpoint.tensor(HEAD), head, rtol=0, atol=0)
    torch.testing.assert_close(checkpoint.tensor(EMBEDDING), tensors[EMBEDDING], rtol=0, atol=0)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "model.layers.1.self_attn.masked_bias",
        "model.layers.1.self_attn.k_proj.k_scale",
        "model.layers.1.self_attn.v_scale",
    ],
)
def test_what_nobody_reads_is_left_aside(tied: Path, name: str) -> None:
    expected = tensors_of(tied)
    store(tied, expected | {name: torch.ones(1)})
    assert_same(tied, expected)


def test_a_stored_mask_is_left_aside_and_a_bias_of_its_name_is_not(tied: Path) -> None:
    expected, name = tensors_of(tied), "model.layers.0.self_attn.bias"
    store(tied, expected | {name: torch.ones(1, 1, 4, 4, dtype=torch.bool)})
    assert_same(tied, expected)
    store(tied, expected | {name: torch.ones(64)})
    with pytest.raises(BadCheckpoint, match="has 1 tensors that do not fit"):
        open_checkpoint(tied)


@pytest.mark.parametrize(
    "names",
    [
        ["model.layers.0.self_attn.inner_attn_ln.weight"],
        ["model.layers.0.self_attn.q_norm.weight", "model.layers.0.self_attn.k_norm.weight"],
        ["model.layers.4.input_layernorm.weight"],
        ["score.weight"],
        ["model.norm.bias"],
        ["v_head.summary.weight", "v_head.summary.bias"],
    ],
)
def test_tensors_that_no_module_reads(tied: Path, names: list[str]) -> None:
    store(tied, tensors_of(tied) | {name: torch.ones(64) for name in names})
    with pytest.raises(
        BadCheckpoint, match=f"{len(names)} tensors that do not fit .*{min(names)!r}"
    ):
        open_checkpoint(tied)


def test_biases_that_the_configuration_switches_off(untied: Path) -> None:
    edit_config(untied, attention_bias=False)
    with pytest.raises(
        BadCheckpoint, match=r"16 tensors that do not fit .*set attention_bias or mlp_b"
    ):
        open_checkpoint(untied)


def test_biases_that_the_file_lacks(tied: Path) -> None:
    edit_config(tied, mlp_bias=True)
    with pytest.raises(BadCheckpoint, match=r"lacks 12 of 50 tensors, first .*gate_proj\.bias"):
        open_checkpoint(tied)


def test_another_models_names_are_shown(tied: Path) -> None:
    store(tied, {"transformer.h.0.attn.weight": torch.ones(2)})
    with pytest.raises(BadCheckpoint, match=r"lacks \d+ of \d+ .*such as 'transformer\.h\.0"):
        open_checkpoint(tied)


def test_extra_layers_are_not_left_out(tied: Path) -> None:
    edit_config(tied, num_hidden_layers=2)
    with pytest.raises(BadCheckpoint, match=r"18 tensors that do not fit .*'model\.layers\.2\."):
        open_checkpoint(tied)
