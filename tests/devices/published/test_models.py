"""The totals of published models: their counts, their caches, and agreement with our own spec."""

import pytest

from edgelm.devices.planner.cost_model.work import work_of
from edgelm.devices.published.models import Experts, Total, known_models, model_named
from edgelm.spec.decoder import DecoderSpec
from tests.devices.published.configs import DENSE
from tests.devices.published.synthetic import known

# Billions, all and active, as published; hybrids without their images and predicted tokens.
# OpenAI counts gpt-oss's active ones without the input embedding, Qwen and NVIDIA name a size.
_COUNTED = {
    "llama-3.1-minitron-4b-width": (4.51, 4.51),
    "qwen3-30b-a3b": (30.5, 3.3),
    "qwen3-coder-next": (79.7, 3.9),
    "qwen3.5-0.8b": (0.752393, 0.752393),
    "qwen3.5-2b": (1.881825, 1.881825),
    "qwen3.5-4b": (4.205751, 4.205751),
    "qwen3.5-9b": (8.953803, 8.953803),
    "qwen3.5-27b": (26.9, 26.9),
    "qwen3.5-35b-a3b": (34.7, 3.45),
    "gpt-oss-20b": (20.91, 3.61 + 0.579),
    "gpt-oss-120b": (116.83, 5.13 + 0.579),
    "nemotron-3-nano-30b-a3b": (31.6, 3.6),
    "nemotron-3-nano-4b": (3.97, 3.97),
    "nemotron-nano-9b-v2": (8.9, 8.9),
}
# KiB of a 16-bit cache a token, by the cards of converted files.
_CACHE_KIB = {
    "qwen3.5-0.8b": 12,
    "qwen3.5-2b": 12,
    "qwen3.5-4b": 32,
    "qwen3.5-9b": 32,
    "qwen3.5-27b": 64,
    "qwen3.5-35b-a3b": 20,
    "qwen3-30b-a3b": 96,
    "gpt-oss-20b": 48,
    "nemotron-3-nano-30b-a3b": 6,
}


def total(name: str) -> Total:
    """The entry of `models.toml` of that name."""
    return next(model for model in known_models() if model.name == name)


def test_every_model_is_counted() -> None:
    assert {model.name for model in known_models()} == {*DENSE, *_COUNTED}


@pytest.mark.parametrize("name", DENSE)
def test_dense_model_has_its_published_parameters(name: str) -> None:
    spec = DecoderSpec.from_hf(DENSE[name].config())
    assert spec.parameters == DENSE[name].parameters
    # Norms and biases are not in the totals: no time is spent on them.
    assert total(name).parameters == DENSE[name].parameters - spec.vector_parameters


@pytest.mark.parametrize(
    "name",
    _COUNTED,
)
def test_other_model_has_its_published_parameters(name: str) -> None:
    everything, active = _COUNTED[name]
    assert total(name).parameters == pytest.approx(everything * 1e9, rel=0.003)
    assert total(name).active_parameters == pytest.approx(active * 1e9, rel=0.025)


@pytest.mark.parametrize("name", DENSE)
def test_work_is_that_of_our_own_spec(name: str) -> None:
    spec = DecoderSpec.from_hf(DENSE[name].config())
    ours = work_of(spec, linear_bits=4.5, head_bits=6.56)
    theirs = total(name).work(4.5, 6.56)
    for field in (
        "layers",
        "linear_parameters",
        "head_parameters",
        "linear_bytes",
        "head_bytes",
        "resident_bytes",
        "attention_width",
        "attention_layers",
        "experts",
        "recurrent_layers",
    ):
        assert getattr(theirs, field) == getattr(ours, field), field
    assert set(theirs.caches) == set(ours.caches)
    assert sum(cache.bytes_per_token for cache in theirs.caches) == spec.kv_bytes_per_token(2)


@pytest.mark.parametrize("name", ["gemma-2-9b", "gemma-3-4b", "gemma-3-27b", "llama-3-8b"])
@pytest.mark.parametrize("tokens", [100.0, 2000.0, 9000.0])
def test_windows_cut_the_cache_as_in_our_own_spec(name: str, tokens: float) -> None:
    ours = work_of(DecoderSpec.from_hf(DENSE[name].config()), linear_bits=4, head_bits=4)
    theirs = total(name).work(4, 4)
    assert theirs.cache_bytes(tokens) == ours.cache_bytes(tokens)
    assert theirs.attention_pairs(tokens) == pytest.approx(ours.attention_pairs(tokens))


@pytest.mark.parametrize("name", _CACHE_KIB)
def test_cache_of_a_token(name: str) -> None:
    caches = total(name).work(4, 4).caches
    assert sum(cache.bytes_per_token for cache in caches) == _CACHE_KIB[name] * 1024


# Layers, width and MLP width; Mamba heads, their width, and layers with attention of 40 heads (of
# them 8 with keys and values) of 128: `config.json`, with a pattern that has the counts of theirs.
_NEMOTRON = {
    "nemotron-3-nano-4b": (("M", 17, "M*", 4, "-", 17), 3136, 12544, 96, 80),
    "nemotron-nano-9b-v2": (("M", 23, "M*", 4, "-", 25), 4480, 15680, 128, 80),
}


def nemotron(name: str) -> DecoderSpec:
    """The specification of a Nemotron-H without experts."""
    kinds, hidden, ffn, heads, width = _NEMOTRON[name]
    config = {
        "model_type": "nemotron_h",
        "hybrid_override_pattern": "".join(
            kind * count for kind, count in zip(kinds[::2], kinds[1::2], strict=True)
        ),
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "mamba_num_heads": heads,
        "mamba_head_dim": width,
        "ssm_state_size": 128,
        "n_groups": 8,
        "vocab_size": 131072,
    }
    return DecoderSpec.from_hf(config)


@pytest.mark.parametrize("name", _NEMOTRON)
def test_nemotron_is_that_of_our_own_spec(name: str) -> None:
    spec = nemotron(name)
    ours, theirs = work_of(spec, linear_bits=8, head_bits=8), total(name).work(8, 8)
    assert theirs.layers == ours.layers  # a block is an attention or an MLP: half a layer
    assert theirs.linear_bytes == pytest.approx(ours.linear_bytes, rel=0.01)
    # Without the inputs of convolutions.
    assert 0.95 * ours.state_bytes < theirs.state_bytes < ours.state_bytes


def test_states_of_linear_attention_are_read_and_written() -> None:
    work = known("Qwen3.5-9B").work(4, 4)
    assert work.state_bytes == 2 * 24 * 32 * 128 * 128 * 4
    assert known("Qwen3-8B").work(4, 4).state_bytes == 0


def test_experts_by_hand() -> None:
    # 48 layers of 128 experts, 8 of them active, each of three matrices of 2048 x 768
    one = 3 * 2048 * 768
    everything = known("qwen3-30b-a3b").work(16, 16)
    assert everything.expert_bytes == pytest.approx(2 * 48 * 128 * one)
    assert (everything.active_experts, everything.experts) == (8, 128)
    dense = 2 * (everything.linear_parameters - 48 * 8 * one)
    assert dense == 2 * 48 * (2048 * (2 * 4096 + 2 * 512) + 2048 * 128)  # attention, router
    head = 151936 * 2048
    assert everything.resident_bytes == pytest.approx(
        dense + everything.expert_bytes + 2 * 2 * head
    )
    # One token reads its own experts, a long prompt all of them.
    assert everything.prompt_bytes(1) == pytest.approx(dense + 2 * 48 * 8 * one + 2 * head)
    assert everything.prompt_bytes(10_000) == pytest.approx(
        dense + everything.expert_bytes + 2 * head
    )


def test_bits_of_linears_and_head_are_apart() -> None:
    work = known("llama-3.1-8b").work(4, 16)
    head = 128256 * 4096
    assert work.head_bytes == 2 * head
    assert work.linear_bytes == work.linear_parameters / 2
    assert work.resident_bytes == work.linear_bytes + 2 * 2 * head
    tied = known("llama-3.2-1b").work(4, 16)
    assert tied.resident_bytes == tied.linear_bytes + tied.head_bytes


def test_hybrid_attends_in_a_quarter_of_its_layers() -> None:
    work = known("Qwen3.5-4B").work(4, 4)
    assert (work.layers, work.attention_layers, work.recurrent_layers) == (32, 8, 24)
    assert work.attention_width == 8 * 16 * 256


@pytest.mark.parametrize(
    ("name", "experts"),
    [("gpt-oss-20b", Experts(4, 32, 2880)), ("nemotron-3-nano-30b-a3b", Experts(6, 128))],
)
def test_totals_keep_the_experts(name: str, experts: Experts) -> None:
    assert model_named(name) == total(name)
    assert total(name).experts == experts
