"""Merging a LoRA: the weights that its formula defines, and those that peft makes of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from edgelm.checkpoint.adapter.lora import read_lora
from edgelm.checkpoint.adapter.merge import merged
from edgelm.checkpoint.source import Checkpoint
from edgelm.errors import BadCheckpoint
from edgelm.export.source.reference import Reference
from tests.checkpoints.adapters import modules_of, random_factors, save_adapter
from tests.checkpoints.models import tiny_model
from tests.conftest import TinyFactory

MODULE = "model.layers.1.mlp.down_proj"
TOKENS = torch.arange(3, 40)[None]


def merge(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    return merged(checkpoint, read_lora(folder))


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4.0),
        ({"alpha_pattern": {"down_proj": 2}}, 0.5),
        ({"alpha_pattern": {"q_proj": 2}}, 2.0),
        ({"alpha_pattern": {r"layers\.1\.mlp\.down_proj": 6, "down_proj": 2}}, 1.5),
        ({"fan_in_fan_out": True}, 2.0),  # peft ignores it for linear layers
    ],
)
def test_scale(tiny: TinyFactory, tmp_path: Path, config: dict[str, Any], scale: float) -> None:
    checkpoint = tiny("llama").checkpoint
    factors = random_factors(checkpoint, [MODULE])
    with_adapter = merge(checkpoint, save_adapter(tmp_path / "adapter", factors, **config))
    down, up = factors[f"{MODULE}.lora_A.weight"], factors[f"{MODULE}.lora_B.weight"]
    expected = checkpoint.tensor(f"{MODULE}.weight") + scale * (up @ down)
    torch.testing.assert_close(with_adapter.tensor(f"{MODULE}.weight"), expected)
    other = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(with_adapter.tensor(other), checkpoint.tensor(other))
    assert with_adapter.sha256() != checkpoint.sha256()
    assert not with_adapter.loads_elsewhere


def test_rank_of_its_own(tiny: TinyFactory, tmp_path: Path) -> None:
    checkpoint = tiny("llama").checkpoint
    factors = random_factors(checkpoint, [MODULE], rank=2)
    folder = save_adapter(tmp_path / "adapter", factors, rank_pattern={"mlp.down_proj": 2})
    down, up = factors[f"{MODULE}.lora_A.weight"], factors[f"{MODULE}.lora_B.weight"]
    expected = checkpoint.tensor(f"{MODULE}.weight") + 4 * (up @ down)
    torch.testing.assert_close(merge(checkpoint, folder).tensor(f"{MODULE}.weight"), expected)


def test_dora(tiny: TinyFactory, tmp_path: Path) -> None:
    checkpoint = tiny("llama").checkpoint
    factors = random_factors(checkpoint, [MODULE])
    magnitude = torch.linspace(1, 2, 64)
    factors[f"{MODULE}.lora_magnitude_vector"] = magnitude
    folder = save_adapter(tmp_path / "adapter", factors, use_dora=True)
    found = merge(checkpoint, folder).tensor(f"{MODULE}.weight")
    torch.testing.assert_close(found.norm(dim=1), magnitude)


def test_a_head_of_its_own_unties_the_embedding(tiny: TinyFactory, tmp_path: Path) -> None:
    checkpoint = tiny("llama").checkpoint
    head = torch.randn(checkpoint.shapes["model.embed_tokens.weight"])
    folder = save_adapter(tmp_path / "adapter", {"lm_head.weight": head})
    found = merge(checkpoint, folder)
    assert not found.spec.tie_word_embeddings
    assert torch.equal(found.tensor("lm_head.weight"), head)
    assert torch.equal(
        found.tensor("model.embed_tokens.weight"), checkpoint.tensor("model.embed_tokens.weight")
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r".*\.0\.mlp\.up_proj": 3}},
    "head": {"modules_to_save": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "embedding of gpt-neox": {"target_modules": ["embed_in", "query_key_value"]},
    "biases": {"bias": "all"},
}


@pytest.mark.parametrize(
    ("model", "variant"),
    [
        *(
            (model, variant)
            for model in ("llama3-rope", "llama-untied", "phi3")
            for variant in VARIANTS
            if not variant.endswith("gpt-neox")
        ),
        *(("gpt-neox", variant) for variant in ("lora", "head", "biases")),
        *(("phi", variant) for variant in ("lora", "head", "biases")),
        *(("gpt-neox-sequential", variant) for variant in ("head", "embedding of gpt-neox")),
    ],
)
def test_logits_are_those_of_peft(
    tiny: TinyFactory, tmp_path: Path, model: str, variant: str
) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    options = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear"} | VARIANTS[variant]
    config = peft.LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **options)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(tiny_model(model), config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name or parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.05)
        expected = adapted(TOKENS).logits[0]
    adapted.save_pretrained(tmp_path / "adapter")
    checkpoint = merge(tiny(model).checkpoint, tmp_path / "adapter")
    reference = Reference(checkpoint)
    logits = reference.logits(reference.hidden_states(TOKENS)[0], reference.head())
    assert float((logits - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_2", "olora"])
def test_adapters_whose_base_peft_changes(tiny: TinyFactory, tmp_path: Path, start: str) -> None:
    """The factors of such a file belong to other weights than the model's."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(r=4, init_lora_weights=start, target_modules=["down_proj"])
    adapted = peft.get_peft_model(tiny_model("llama"), config)
    adapted.save_pretrained(tmp_path / "adapter")
    name = "base_model.model.model.layers.1.mlp.down_proj.base_layer.weight"
    own = tiny("llama").checkpoint.tensor(f"{MODULE}.weight")
    assert not torch.allclose(adapted.state_dict()[name], own)
    with pytest.raises(BadCheckpoint, match=f"init_lora_weights is '{start}'"):
        read_lora(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"target_modules": ["down_proj"], "layers_to_transform": [0, 2]}, "layers_to_transform"),
        ({"target_modules": ["down_proj"], "layers_to_transform": 0}, "layers_to_transform"),
        ({"target_modules": ["q_proj", "up_proj"]}, "target_modules"),
        ({"target_modules": ["proj"]}, "target_modules"),
        ({"target_modules": ["down_proj"], "exclude_modules": ["1.mlp.down_proj"]}, "exclude_mod"),
        (
            {
                "target_modules": ["down_proj"],
                "layers_to_transform": [1],
                "layers_pattern": ["blocks"],
            },
            "layers_to_transform",
        ),
        ({"target_modules": ["down_proj"], "layers_to_transform": [1]}, None),
        ({"target_modules": [MODULE], "layers_to_transform": [0]}, None),
        (
            {
                "target_modules": ["down_proj"],
                "layers_to_transform": [1],
                "layers_pattern": "layers",
            },
            None,
        ),
        ({"target_modules": ".*down_proj"}, None),
    ],
)
def test_factors_of_modules_that_are_no_targets(
    tiny: TinyFactory, tmp_path: Path, config: dict[str, Any], field: str | None
) -> None:
    """They would change the model here, and PEFT leaves them out."""
    checkpoint = tiny("llama").checkpoint
    folder = save_adapter(tmp_path / "adapter", random_factors(checkpoint, [MODULE]), **config)
    try:
        model = PeftModel.from_pretrained(tiny_model("llama"), str(folder))
    except ValueError:  # no target at all
        applied = False
    else:
        applied = f"base_model.model.{MODULE}.lora_B.default.weight" in model.state_dict()
    assert applied == (field is None)
    if field is None:
        merge(checkpoint, folder)
    else:
        with pytest.raises(BadCheckpoint, match=rf"has factors of '{MODULE}', which {field}"):
            merge(checkpoint, folder)


@pytest.mark.parametrize(
    "config",
    [{"layers_to_transform": "all"}, {"layers_to_transform": [True]}, {"target_modules": 3}],
)
def test_targets_of_the_wrong_type(
    tiny: TinyFactory, tmp_path: Path, config: dict[str, Any]
) -> None:
    factors = random_factors(tiny("llama").checkpoint, [MODULE])
    [field] = config
    with pytest.raises(BadCheckpoint, match=rf"{field} is .*, expected (numbers|a list)"):
        read_lora(save_adapter(tmp_path / "adapter", factors, **config))


def test_a_magnitude_without_dora(tiny: TinyFactory, tmp_path: Path) -> None:
    factors = random_factors(tiny("llama").checkpoint, [MODULE])
    factors[f"{MODULE}.lora_magnitude_vector"] = torch.ones(64)
    with pytest.raises(BadCheckpoint, match=r"use_dora is false, but the magnitude .* is stored"):
        read_lora(save_adapter(tmp_path / "adapter", factors))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "of the type 'IA3', expected LORA"),
        ({"target_parameters": ["experts.up"]}, "it adapts the parameters of experts"),
        ({"layer_replication": [[0, 2]]}, "it repeats layers"),
        ({"r": 0}, "r is 0, expected a whole number from 1 to"),
        ({"r": 10**400}, "r is 10000.*, expected a whole number from 1 to"),
        ({"r": 8}, r"has shape \[4, 96\], expected two dimensions, one of 8"),
        ({"use_rslora": 1}, "use_rslora is 1, expected true or false"),
        ({"use_rslora": "true"}, "use_rslora is 'true', expected true or false"),
        ({"use_dora": True}, r"use_dora is true, but the magnitude .* is missing"),
        ({"init_lora_weights": "corda"}, "init_lora_weights is 'corda', with which peft changes"),
        ({"lora_alpha": "8"}, "lora_alpha is '8', expected a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan, expected a number from 0 to"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf, expected a number from 0 to"),
        ({"alpha_pattern": {"q_proj": 10**400}}, "expected a number from 0 to"),
        ({"rank_pattern": {"(": 4}}, "expected regular expressions"),
        ({"rank_pattern": {"(.*a)*b": 4}}, "expected patterns without repeated groups"),
        ({"rank_pattern": {".*.*.*.*.*.*.*.*.*.*.*z": 4}}, "with fewer repeats and alternatives"),
        ({"rank_pattern": {"(..|..)" * 20 + "z": 4}}, "with fewer repeats and alternatives"),
        ({"rank_pattern": {".?" * 40 + "z": 4}}, "with fewer repeats and alternatives"),
        ({"rank_pattern": {"a{99999999999}": 4}}, "expected regular expressions"),
        ({"rank_pattern": {"a" * 201: 4}}, "expected patterns of at most 200 characters"),
        ({"alpha_pattern": [4]}, r"alpha_pattern is \[4\], expected an object"),
    ],
)
def test_what_cannot_be_merged(
    tiny: TinyFactory, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    factors = random_factors(tiny("llama").checkpoint, [MODULE])
    folder = save_adapter(tmp_path / "adapter", factors, **config)
    with pytest.raises(BadCheckpoint, match=message):
        read_lora(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, one: {name.replace("down_proj", "gate_proj"): one}, "does not belong to"),
        (lambda name, one: {name.replace("layers.1", "layers.9"): one}, "has no such tensor"),
        (lambda name, one: {name: one} if "lora_A" in name else {}, "lacks lora_B"),
        (lambda name, one: {name: one * torch.nan}, "NaN"),
        (lambda name, one: {name: one.int()}, "stored as I32, expected F32"),
        (lambda name, one: {name.replace("lora_A", "lora_C"): one}, "not a part of a LoRA"),
        (lambda name, one: {f"{name}.bias": one}, "not a part of a LoRA"),
    ],
)
def test_tensors_that_do_not_fit(
    tiny: TinyFactory, tmp_path: Path, change: Any, message: str
) -> None:
    checkpoint = tiny("llama").checkpoint
    tensors: dict[str, torch.Tensor] = {}
    for name, one in random_factors(checkpoint, [MODULE]).items():
        tensors |= change(name, one)
    folder = save_adapter(tmp_path / "adapter", tensors)
    with pytest.raises(BadCheckpoint, match=message):
        merge(checkpoint, folder).tensor(f"{MODULE}.weight")


def test_folders_that_are_not_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="expected the folder of a PEFT LoRA"):
        read_lora(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(BadCheckpoint, match=r"has no adapter_model\.safetensors; save"):
        read_lora(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(BadCheckpoint, match="only pickled weights"):
        read_lora(tmp_path)


def test_every_projection_of_a_model(tiny: TinyFactory, tmp_path: Path) -> None:
    checkpoint = tiny("qwen3").checkpoint
    modules = modules_of(checkpoint)
    folder = save_adapter(tmp_path / "adapter", random_factors(checkpoint, modules))
    found = merge(checkpoint, folder)
    changed = [
        m
        for m in modules
        if not torch.equal(*(c.tensor(f"{m}.weight") for c in (found, checkpoint)))
    ]
    assert changed == modules
