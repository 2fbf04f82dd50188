"""Every architecture as llama.cpp's converter writes it, beside the model that was converted.

What the converter writes was compared with llama.cpp itself: it computes the same logits of these
files as transformers does of the checkpoints (docs/decisions/quantized-sources.md).
"""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from edgelm.checkpoint.gguf.layout.architectures import ARCHITECTURES
from edgelm.checkpoint.source import Checkpoint, open_checkpoint
from edgelm.compress.model import load_model
from edgelm.errors import BadCheckpoint
from edgelm.quantize.precision import Int4, Int8, Mxfp4, WeightPrecision
from edgelm.spec.decoder import DecoderSpec
from tests.checkpoints.gguf_files import write_gguf
from tests.checkpoints.models import tiny_model

YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0}
YARN |= {"original_max_position_embeddings": 32}
PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# The converter multiplies Falcon-H1's constants into biases, too; no published model has any.
UNBIASED = dict.fromkeys(
    ("attention_bias", "mlp_bias", "projectors_bias", "mamba_proj_bias"), False
)
# Fields that files cannot hold have the value that llama.cpp computes with.
OPTIONS: dict[str, dict[str, Any]] = {
    "gemma": {},
    "smollm3": {},
    "granite": {},
    "arcee": {},
    "ministral3": {
        "rope_parameters": YARN
        | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.25}
    },
    "olmo2": {},
    "olmo3": {"rope_parameters": {"full_attention": YARN, "sliding_attention": PLAIN}},
    "exaone4": {},
    "seed-oss": {},
    "hunyuan": {},
    "ernie4.5": {},
    "glm4": {},
    "lfm2": {},
    "apertus": {"rope_parameters": LLAMA3},
    "starcoder2": {"sliding_window": None},  # which llama.cpp does not apply
    "stablelm": {},
    "stablelm-parallel": {},
    "gemma3n": {"vocab_size_per_layer_input": 128},
    "cohere": {},
    "cohere2": {"attention_bias": False},
    "phi": {"num_key_value_heads": 4},
    "gpt-neox": {},
    "gpt-neox-sequential": {"attention_bias": True, "tie_word_embeddings": False},
    "gemma4": {},
    "gemma4-dense": {},
    "qwen3-moe": {"mlp_only_layers": []},
    "olmoe": {},
    "gpt-oss": {"swiglu_limit": 7.0},
    "lfm2-moe": {"routed_scaling_factor": 1.0},
    "granite-moe": {},
    "qwen3.5": {},
    "qwen3.5-moe": {},
    "granite-hybrid": {},
    "granite-hybrid-moe": {},
    "nemotron-h": {},
    "falcon-h1": UNBIASED,
    "falcon-h1-norm": {"mamba_norm_before_gate": False},
}
# Its files hold products of matrices and constants.
FOLDED = ("falcon-h1",)


def written(name: str, folder: Path, kind: str = "F32", **options: Any) -> tuple[Any, Checkpoint]:
    """A tiny model, and its file."""
    names = ("metadata", "integers", "arrays", "without")
    over = {key: options.pop(key) for key in names if key in options}
    model = tiny_model(name, **OPTIONS.get(name, {}) | options)
    return model, open_checkpoint(write_gguf(model, folder / "model.gguf", kind, **over))


def rounded(value: Any) -> Any:
    """With numbers as fp32 has them."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return float(np.float32(value)) if isinstance(value, float) else value


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in FOLDED])
def test_the_file_is_the_model(tmp_path: Path, name: str) -> None:
    model, checkpoint = written(name, tmp_path)
    expected = DecoderSpec.from_hf(model.config.to_dict())
    assert rounded(msgspec.to_builtins(checkpoint.spec)) == rounded(msgspec.to_builtins(expected))
    model.save_pretrained(tmp_path / "folder")
    folder = open_checkpoint(tmp_path / "folder")
    assert checkpoint.shapes == folder.shapes
    for tensor in folder.shapes:
        torch.testing.assert_close(
            checkpoint.tensor(tensor), folder.tensor(tensor).float(), rtol=0, atol=1e-6
        )


def assert_same_logits(model: Any, checkpoint: Checkpoint) -> None:
    """Of transformers' model and of what is read of its file."""
    tokens = torch.arange(5, 45)[None] * 7 % 120
    read = load_model(checkpoint)
    for each in (model, read):
        each.set_attn_implementation("eager")
        each.eval()
    with torch.inference_mode():
        expected, found = model(tokens).logits, read(tokens).logits
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", OPTIONS)
def test_logits_are_those_of_the_model(tmp_path: Path, name: str) -> None:
    assert_same_logits(*written(name, tmp_path))


@pytest.mark.parametrize("name", ["lfm2", "granite", "glm4"])
def test_quantized_matrices_keep_their_levels(tmp_path: Path, name: str) -> None:
    options = {"block_multiple_of": 32} if name == "lfm2" else {}
    _, checkpoint = written(name, tmp_path, "Q8_0", **options)
    matrices = [tensor for tensor, shape in checkpoint.shapes.items() if len(shape) == 2]
    assert checkpoint.packed.keys() == set(matrices)
    for tensor, packed in checkpoint.packed.items():
        assert torch.equal(packed.read().dequantize(), checkpoint.tensor(tensor))


@pytest.mark.parametrize(
    ("name", "kind", "precision"),
    [
        ("qwen3-moe", "Q4_0", Int4(32, symmetric=True)),
        ("lfm2-moe", "Q8_0", Int8(32)),
        ("granite-hybrid-moe", "Q8_0", Int8(32)),
        ("olmoe", "MXFP4", Int8(32)),
        ("gpt-oss", "MXFP4", Mxfp4()),
    ],
)
def test_quantized_experts_keep_their_levels(
    tmp_path: Path, name: str, kind: str, precision: WeightPrecision
) -> None:
    model, checkpoint = written(name, tmp_path, kind)
    stacks = [tensor for tensor, shape in checkpoint.shapes.items() if len(shape) == 3]
    stacks = [tensor for tensor in stacks if ".experts." in tensor]
    assert stacks
    state = model.state_dict()
    for tensor in stacks:
        packed = checkpoint.packed[tensor]
        assert packed.precision == precision
        assert packed.shape == checkpoint.shapes[tensor]
        assert torch.equal(packed.dequantize(), checkpoint.tensor(tensor))
        # The order of rows and experts: every weight is near the model's.
        error = (checkpoint.tensor(tensor) - state[tensor]).abs().mean()
        assert error <= 0.2 * state[tensor].abs().mean()


def test_columns_of_quantized_value_heads_move_whole_groups(tmp_path: Path) -> None:
    options = {"linear_value_head_dim": 32, "linear_num_value_heads": 4}
    model, checkpoint = written("qwen3.5", tmp_path, "Q8_0", **options)
    name = "model.layers.0.linear_attn.out_proj.weight"
    packed = checkpoint.packed[name]
    assert packed.precision == Int8(32)
    assert torch.equal(packed.dequantize(), checkpoint.tensor(name))
    weight = model.state_dict()[name]
    assert (packed.dequantize() - weight).abs().max() <= 0.01 * weight.abs().max()
    # Heads smaller than a group cannot move without their scales.
    (tmp_path / "small").mkdir()
    _, small = written("qwen3.5", tmp_path / "small", "Q8_0")
    assert small.packed[name].precision is None
    assert torch.equal(small.packed[name].dequantize(), small.tensor(name))


def test_transformers_reads_only_some_architectures() -> None:
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    read = {name for name, row in ARCHITECTURES.items() if row.by_transformers}
    otherwise = {"lfm2", "gemma4", "starcoder2", "stablelm"}
    assert read == set(ARCHITECTURES) & set(GGUF_SUPPORTED_ARCHITECTURES) - otherwise


def test_mistral_small_is_a_llama(tmp_path: Path) -> None:
    model = tiny_model("ministral3", **OPTIONS["ministral3"])
    model.config.rope_parameters |= {"llama_4_scaling_beta": 0.0}
    path = write_gguf(model, tmp_path / "model.gguf", without=("attention.temperature_scale",))
    assert open_checkpoint(path).config["model_type"] == "llama"


def test_exaone_without_windows_rotates_every_layer(tmp_path: Path) -> None:
    model = tiny_model("exaone4", layer_types=["full_attention"] * 4)
    model.config.sliding_window = None
    for layer in model.model.layers:
        layer.self_attn.sliding_window = None
    windows = ("sliding_window", "sliding_window_pattern")
    checkpoint = open_checkpoint(write_gguf(model, tmp_path / "model.gguf", without=windows))
    assert all(layer.rope is not None for layer in checkpoint.spec.layers)
    assert not any(layer.window for layer in checkpoint.spec.layers)
    assert_same_logits(model, checkpoint)


@pytest.mark.parametrize("counts", [[0, 2], [0] * 5, [0, 2, 0, 1, 2], [0, 2, 0, -2, 2]])
def test_lfm2_needs_a_number_of_heads_for_each_layer(tmp_path: Path, counts: list[int]) -> None:
    model = tiny_model("lfm2")
    path = write_gguf(
        model, tmp_path / "model.gguf", arrays={"lfm2.attention.head_count_kv": counts}
    )
    with pytest.raises(BadCheckpoint, match=r"head_count_kv is an array of \d items, expected one"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["cohere", "cohere2"])
def test_logits_without_a_factor(tmp_path: Path, name: str) -> None:
    model = tiny_model(name, **OPTIONS[name] | {"logit_scale": 1.0})
    path = write_gguf(model, tmp_path / "model.gguf", without=(".logit_scale",))
    assert_same_logits(model, open_checkpoint(path))


def test_two_factors_for_one_attention(tmp_path: Path) -> None:
    factor = {"mistral3.rope.scaling.attn_factor": 1.5}
    with pytest.raises(BadCheckpoint, match=r"attn_factor and by yarn_log_multiplier"):
        written("ministral3", tmp_path, metadata=factor)


def test_layers_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    model = tiny_model("qwen3.5")
    layers = {"qwen35.block_count": 5, "qwen35.nextn_predict_layers": 1}
    extra: dict[str, Any] = {"blk.4.attn_norm.weight": np.ones(64, np.float32)}
    extra |= {"blk.4.nextn.eh_proj.weight": np.ones((64, 128), np.float32)}
    path = write_gguf(
        model, tmp_path / "m.gguf", tensors=extra, without=(".block_count",), integers=layers
    )
    checkpoint = open_checkpoint(path)
    assert checkpoint.spec.num_hidden_layers == 4
    assert_same_logits(model, checkpoint)


def test_recurrent_layers_without_flags_follow_the_interval(tmp_path: Path) -> None:
    options: dict[str, Any] = {"integers": {"qwen35.full_attention_interval": 2}}
    options |= {"without": (".recurrent_layers", ".full_attention_interval")}
    model, checkpoint = written("qwen3.5", tmp_path, **options)
    assert_same_logits(model, checkpoint)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("qwen3-moe", {"without": (".expert_count",)}, r"lacks the key qwen3moe\.expert_count"),
        ("gpt-oss", {"without": (".expert_used_count",)}, r"lacks the key gpt-oss\.expert_used"),
        (
            "gpt-oss",
            {"without": (".sliding_window",)},
            r"lacks the key .*attention\.sliding_window",
        ),
        ("lfm2-moe", {"without": (".expert_gating_func",)}, r"lacks the key .*expert_gating_func"),
        ("olmoe", {"integers": {"olmoe.expert_group_count": 4}}, r"expert_group_count is 4"),
        ("qwen3.5", {"without": (".ssm.state_size",)}, r"lacks the key qwen35\.ssm\.state_size"),
        ("granite-hybrid", {"without": (".head_count_kv",)}, r"lacks the key .*head_count_kv"),
        ("nemotron-h", {"without": (".feed_forward_length",)}, r"lacks the key .*feed_forward"),
        ("falcon-h1", {"without": (".ssm.inner_size",)}, r"lacks the key .*ssm\.inner_size"),
        (
            "gpt-neox",
            {"without": ("use_parallel_residual",)},
            r"lacks the key gptneox\.use_parallel_residual",
        ),
        ("apertus", {"without": ("xielu.beta",)}, r"lacks the key xielu\.beta"),
    ],
)
def test_missing_and_unsupported_keys(
    tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadCheckpoint, match=message):
        written(name, tmp_path, **changes)


@pytest.mark.parametrize(
    ("name", "key", "values", "message"),
    [
        ("granite-hybrid", "attention.head_count_kv", [0, 2], "expected one number"),
        ("granite-hybrid", "attention.head_count_kv", [0, 2, 0, 4, 2, 0], "of two: 0 and that"),
        ("nemotron-h", "attention.head_count_kv", [2] * 8, "and 0 for the layers"),
        ("nemotron-h", "feed_forward_length", [0, 96, 0, 0, 0, 96, 32, 0], "must have one size"),
    ],
)
def test_lists_of_layers_that_do_not_fit(
    tmp_path: Path, name: str, key: str, values: list[int], message: str
) -> None:
    architecture = {"granite-hybrid": "granitehybrid", "nemotron-h": "nemotron_h"}[name]
    with pytest.raises(BadCheckpoint, match=message):
        written(name, tmp_path, arrays={f"{architecture}.{key}": values})


def test_a_flag_of_experts_that_is_an_array(tmp_path: Path) -> None:
    extra = {"qwen3moe.expert_weights_scale": [1, 1]}
    with pytest.raises(BadCheckpoint, match=r"expert_weights_scale"):
        written("qwen3-moe", tmp_path, arrays=extra)


def test_half_of_the_experts_is_missing(tmp_path: Path) -> None:
    path = write_gguf(
        tiny_model("olmoe"), tmp_path / "model.gguf", without_tensors=("ffn_up_exps",)
    )
    with pytest.raises(BadCheckpoint, match=r"ffn_gate_exps.*the other one is missing"):
        open_checkpoint(path)


def test_decay_must_be_negative(tmp_path: Path) -> None:
    model = tiny_model("granite-hybrid")
    extra = {"blk.0.ssm_a": np.ones((8, 1), np.float32)}
    path = write_gguf(
        model, tmp_path / "model.gguf", tensors=extra, without_tensors=("blk.0.ssm_a",)
    )
    with pytest.raises(BadCheckpoint, match=r"ssm_a.* must hold numbers below 0"):
        open_checkpoint(path).tensor("model.layers.0.mamba.A_log")


def test_keys_that_gemma_4_does_not_read_are_left_out(tmp_path: Path) -> None:
    model = tiny_model("gemma4")
    extra: dict[str, Any] = {"blk.6.attn_k.weight": np.ones((64, 64), np.float32)}
    extra |= {"blk.6.attn_k_norm.weight": np.ones(32, np.float32)}
    checkpoint = open_checkpoint(write_gguf(model, tmp_path / "model.gguf", tensors=extra))
    assert_same_logits(model, checkpoint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"without": (".sliding_window_pattern",)}, r"lacks the key .*sliding_window_pattern"),
        ({"without_tensors": ("rope_freqs",)}, r"rope_freqs\.weight must hold 16 numbers"),
        ({"arrays": {"gemma4.feed_forward_length": [96] * 6 + [128]}}, "must be one size, or"),
        ({"arrays": {"gemma4.attention.head_count_kv": [2, 1, 2, 2, 2, 2, 2]}}, "one number for"),
        ({"integers": {"gemma4.expert_count": 8}}, "mixture-of-experts models"),
    ],
)
def test_gemma_4_that_is_not_supported(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write_gguf(tiny_model("gemma4"), tmp_path / "model.gguf", **changes)
    with pytest.raises(BadCheckpoint, match=message):
        open_checkpoint(path)


def test_matrices_of_a_quantized_stack_keep_their_levels(tmp_path: Path) -> None:
    model, checkpoint = written("gemma3n", tmp_path, "Q8_0")
    for kind in ("altup_projections", "altup_unembed_projections"):
        for number in range(3):
            name = f"model.{kind}.{number}.weight"
            packed, weight = checkpoint.packed[name], model.state_dict()[name]
            assert packed.precision == Int8(32)
            assert torch.equal(packed.read().dequantize(), checkpoint.tensor(name))
            assert (packed.dequantize() - weight).abs().max() <= 0.01 * weight.abs().max()


def test_tokens_without_inputs_of_their_own_have_zeros(tmp_path: Path) -> None:
    """The converter fills the table of per-layer inputs up to the vocabulary."""
    _, checkpoint = written("gemma3n", tmp_path, vocab_size_per_layer_input=120)
    rows = checkpoint.tensor("model.embed_tokens_per_layer.weight")
    assert checkpoint.config["vocab_size_per_layer_input"] == len(rows) == 128
    assert rows[:120].abs().sum(1).min() > 0
    assert not rows[120:].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"without": (".activation_sparsity_scale",)}, "lacks the key .*sparsity_scale"),
        ({"arrays": {"gemma3n.activation_sparsity_scale": [0.5] * 6}}, "number for each of 7"),
        ({"without_tensors": ("laurel_l",)}, r"lacks .*blk\.0\.laurel_l\.weight"),
        ({"without": (".altup.num_inputs",)}, "lacks the key .*num_inputs"),
    ],
)
def test_gemma_3n_that_is_not_complete(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write_gguf(tiny_model("gemma3n"), tmp_path / "model.gguf", **changes)
    with pytest.raises(BadCheckpoint, match=message):
        open_checkpoint(path)


def test_norms_of_single_heads_are_not_left_out(tmp_path: Path) -> None:
    """StableLM 2 12B: the converter stacks the heads' norms, and stores no mark of them."""
    norm = np.ones((4, 16), np.float32)
    extra = {f"blk.{layer}.attn_q_norm.weight": norm for layer in range(2)}
    path = write_gguf(tiny_model("stablelm"), tmp_path / "model.gguf", tensors=extra)
    with pytest.raises(BadCheckpoint, match=r"do not fit .*q_norm"):
        open_checkpoint(path)
