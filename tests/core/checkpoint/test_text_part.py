"""The text decoder of multimodal checkpoints, against the whole model on text."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from edgelm.checkpoint.refused_models import REFUSED
from edgelm.checkpoint.source import open_checkpoint, read_spec
from edgelm.errors import BadCheckpoint, UnknownName
from edgelm.export.source.reference import Reference
from edgelm.export.source_check.second_opinion import check_source
from edgelm.spec.families.table import FAMILIES
from tests.checkpoints.models import randomize
from tests.export.graphs import build_session

TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "max_position_embeddings": 128,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
_GEMMA_4 = TEXT | {
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "sliding_window": 8,
    "global_head_dim": 32,
    "vocab_size_per_layer_input": 128,
}
_PATCHES = VISION | {"num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 64}
_RAW_PATCHES: dict[str, Any] = {"mm_embed_dim": 16, "mm_posemb_size": 8, "output_proj_dims": 64}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
TOKENS = torch.randint(3, 100, (1, 24), generator=torch.Generator().manual_seed(1))
# model_type -> text_config, vision_config, other fields
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "gemma3": (TEXT | {"sliding_window": 8}, VISION, {"image_token_index": 120}),
    "gemma4": (
        _GEMMA_4 | {"hidden_size_per_layer_input": 16, "num_kv_shared_layers": 1},
        _PATCHES,
        {},
    ),
    "gemma4_unified": (_GEMMA_4 | {"attention_k_eq_v": True}, _RAW_PATCHES, {}),
    "mistral3": (
        TEXT
        | {
            "model_type": "ministral3",
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "llama_4_scaling_beta": 0.3,
            },
        },
        VISION | {"head_dim": 8},
        {"image_token_index": 120},
    ),
    "qwen3_5": (
        TEXT
        | {
            "num_hidden_layers": 4,
            "head_dim": 64,
            "layer_types": None,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 8,
            "rope_parameters": ROPE | {"mrope_section": [4, 2, 2], "mrope_interleaved": True},
        },
        {"hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 2}
        | {"patch_size": 4, "out_hidden_size": 64},
        {"image_token_id": 120, "video_token_id": 121, "vision_start_token_id": 122},
    ),
    "qwen3_vl": (
        TEXT | {"rope_parameters": ROPE | {"mrope_section": [4, 2, 2], "mrope_interleaved": True}},
        {"hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 2}
        | {"patch_size": 4, "out_hidden_size": 64, "deepstack_visual_indexes": [0]},
        {"image_token_id": 120, "video_token_id": 121, "vision_start_token_id": 122},
    ),
}
TOWERS = {
    "gemma4": {"vision_tower", "embed_vision"},
    "gemma4_unified": {"embed_vision", "vision_embedder"},
    "gemma3": {"vision_tower", "multi_modal_projector"},
    "mistral3": {"vision_tower", "multi_modal_projector"},
    "qwen3_5": {"visual"},
    "qwen3_vl": {"visual"},
}


@pytest.fixture(scope="module", params=sorted(MODELS))
def multimodal(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    text, vision, others = MODELS[request.param]
    config = AutoConfig.for_model(
        request.param, text_config=text, vision_config=vision, tie_word_embeddings=False, **others
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # Qwen3.5 draws its decays, around which `randomize` varies
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    randomize(model)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    loaded = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager")
    return request.param, folder, loaded.eval()


def test_the_decoder_computes_what_the_whole_model_does(multimodal: Any, tmp_path: Path) -> None:
    kind, folder, model = multimodal
    checkpoint = open_checkpoint(folder)
    assert set(checkpoint.left_out) == TOWERS[kind]
    with torch.inference_mode():
        expected = model(input_ids=TOKENS).logits[0].numpy()
    with build_session(checkpoint, tmp_path) as session:
        ours = session.advance(TOKENS[0].numpy(), logits=TOKENS.shape[1])
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()


def test_transformers_agrees_with_the_reading(multimodal: Any, tmp_path: Path) -> None:
    _, folder, _ = multimodal
    reference = Reference(open_checkpoint(folder), context=64)
    assert check_source(reference, TOKENS, context=64, scratch=tmp_path).agrees


@pytest.mark.parametrize("layout", ["language_model.model.", "model.language_model."])
def test_names_of_other_versions(multimodal: Any, tmp_path: Path, layout: str) -> None:
    _, folder, _ = multimodal
    stored = load_file(folder / "model.safetensors")
    tensors = {_renamed(name, layout): tensor for name, tensor in stored.items()}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    renamed, saved = open_checkpoint(tmp_path), open_checkpoint(folder)
    assert renamed.spec == saved.spec == read_spec(tmp_path)
    assert renamed.left_out == saved.left_out
    for name in saved.shapes:
        assert torch.equal(renamed.tensor(name), saved.tensor(name))


def _renamed(name: str, layout: str) -> str:
    name = re.sub(r"^(language_model\.model|model\.language_model)\.", layout, name)
    if name.endswith("lm_head.weight"):
        return "lm_head.weight" if layout.startswith("model.") else "language_model.lm_head.weight"
    return name


def test_heads_for_later_tokens_are_left_out(multimodal: Any, tmp_path: Path) -> None:
    kind, folder, _ = multimodal
    tensors = load_file(folder / "model.safetensors") | {"mtp.fc.weight": torch.ones(2, 2)}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.left_out) == TOWERS[kind] | {"mtp"}
    assert checkpoint.draft_head.keys() == {"fc.weight"}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("llama4", "its experts scale"),
        ("zamba2", "Mamba"),
        ("bamba", "Mamba"),
        ("gpt2", "rows of a table"),
        ("deepseek_v3", "MLA"),
    ],
)
def test_other_models_are_refused_with_the_reason(tmp_path: Path, kind: str, reason: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "text_config": {}}))
    with pytest.raises(UnknownName, match=rf"{kind} is not supported: .*{reason}"):
        read_spec(tmp_path)


def test_no_supported_model_is_refused() -> None:
    assert not REFUSED.keys() & FAMILIES.keys()


def test_a_wrapper_without_its_decoder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3"}))
    with pytest.raises(BadCheckpoint, match="text_config is None, expected the configuration"):
        read_spec(tmp_path)


def test_keys_of_layers_that_share_others_are_not_read(multimodal: Any, tmp_path: Path) -> None:
    kind, folder, _ = multimodal
    if kind != "gemma4":
        pytest.skip("only Gemma 4 shares keys and values")
    tensors = load_file(folder / "model.safetensors")
    first = "model.language_model.layers.1.self_attn."
    unused = {name: tensor for name, tensor in tensors.items() if name.startswith(first)}
    shared = {
        name.replace("layers.1.", "layers.2."): tensor.clone()
        for name, tensor in unused.items()
        if "k_" in name or "v_" in name
    }
    assert len(shared) == 3
    assert not shared.keys() & tensors.keys()
    save_file(tensors | shared, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert open_checkpoint(tmp_path).shapes == open_checkpoint(folder).shapes


def test_a_mixture_beside_an_mlp_is_refused(multimodal: Any, tmp_path: Path) -> None:
    kind, folder, _ = multimodal
    if kind != "gemma4":
        pytest.skip("Gemma 4 26B-A4B")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadCheckpoint, match=r"enable_moe_block is True: .*26B-A4B"):
        read_spec(tmp_path)
