"""What speculation is predicted to gain."""

import json
from pathlib import Path

import msgspec
import pytest

import edgelm.checkpoint.source as source
from edgelm.checkpoint.drafts.assistant import read_assistant
from edgelm.devices.cli import main
from edgelm.devices.planner.estimate import estimate
from edgelm.devices.planner.speculation import speculation_plan
from edgelm.devices.profile import Profile, load_profile
from edgelm.errors import BadInput
from edgelm.planning import PlanRequest
from edgelm.spec.assistant import with_sources
from edgelm.spec.decoder import DecoderSpec
from edgelm.speculation import SIZES, expected_tokens

REQUEST = PlanRequest("int8", None, 2048, None, None, None)
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
SMALL = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28}


@pytest.fixture(scope="module")
def large() -> DecoderSpec:
    return DecoderSpec.from_hf(CONFIG)


@pytest.fixture(scope="module")
def small() -> DecoderSpec:
    return DecoderSpec.from_hf({**CONFIG, **SMALL, "num_attention_heads": 16})


@pytest.fixture(scope="module")
def cpu() -> Profile:
    return load_profile("cpu")


def test_expected_tokens_by_hand() -> None:
    assert expected_tokens(0.5, 0) == 1
    assert expected_tokens(0.5, 2) == pytest.approx(1.75)
    assert expected_tokens(1.0, 15) == 16
    assert expected_tokens(0.0, 15) == 1


def test_more_accepted_is_never_slower(
    large: DecoderSpec, small: DecoderSpec, cpu: Profile
) -> None:
    gains = [
        speculation_plan(large, cpu, REQUEST, small, acceptance=share / 10).gains[0]
        for share in range(11)
    ]
    assert gains[0].drafts == 0
    assert gains[0].gain == 1
    assert [one.gain for one in gains] == sorted(one.gain for one in gains)
    assert gains[-1].gain > 1.3


def test_lookup_drafts_for_nothing(large: DecoderSpec, small: DecoderSpec, cpu: Profile) -> None:
    lookup = speculation_plan(large, cpu, REQUEST, None)
    draft = speculation_plan(large, cpu, REQUEST, small)
    assert lookup.draft_bytes == 0
    assert [one.acceptance for one in lookup.gains] == [0.4, 0.6, 0.8]
    for ours, theirs in zip(lookup.gains, draft.gains, strict=True):
        assert ours.gain >= theirs.gain
    assert lookup.break_even is not None
    assert draft.break_even is not None
    assert lookup.break_even < draft.break_even


def test_ratios_are_those_of_the_cost_model(large: DecoderSpec, cpu: Profile) -> None:
    plan = speculation_plan(large, cpu, REQUEST, None)
    assert tuple(plan.run_ratios) == SIZES
    single = estimate(large, cpu, REQUEST).decode_ms.value
    four = estimate(large, cpu, msgspec.structs.replace(REQUEST, batch=4)).decode_ms.value
    assert plan.run_ratios[4] == pytest.approx(four / single)
    assert 1 < plan.run_ratios[2] < plan.run_ratios[16]


def test_a_draft_takes_memory(large: DecoderSpec, small: DecoderSpec, cpu: Profile) -> None:
    plan = speculation_plan(large, cpu, REQUEST, small)
    assert small.parameters < plan.draft_bytes < estimate(large, cpu, REQUEST).total_bytes
    whole = estimate(large, cpu, REQUEST).total_bytes
    tight = msgspec.structs.replace(REQUEST, max_memory_bytes=whole + 1)
    assert not speculation_plan(large, cpu, tight, small).fits
    assert "does not fit" in speculation_plan(large, cpu, tight, small).table()


def test_a_model_as_its_own_draft_does_not_pay(large: DecoderSpec, cpu: Profile) -> None:
    plan = speculation_plan(large, cpu, REQUEST, large)
    assert plan.break_even is None
    assert "faster from: no acceptance" in plan.table()


def test_what_cannot_be_predicted_is_refused(
    large: DecoderSpec, small: DecoderSpec, cpu: Profile
) -> None:
    with pytest.raises(BadInput, match="one sequence"):
        speculation_plan(large, cpu, msgspec.structs.replace(REQUEST, batch=2), None)
    other = msgspec.structs.replace(small, vocab_size=1000)
    with pytest.raises(BadInput, match="same tokenizer"):
        speculation_plan(large, cpu, REQUEST, other)


GEMMA = {
    "model_type": "gemma4_text",
    "vocab_size": 262_144,
    "hidden_size": 1536,
    "intermediate_size": 6144,
    "num_hidden_layers": 35,
    "layer_types": [*["sliding_attention"] * 4, "full_attention"] * 7,
    "num_kv_shared_layers": 20,
    "use_double_wide_mlp": True,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "max_position_embeddings": 131_072,
    "hidden_size_per_layer_input": 256,
}
ASSISTANT = {
    "model_type": "gemma4_assistant",
    "backbone_hidden_size": 1536,
    "text_config": GEMMA
    | {
        "hidden_size": 256,
        "intermediate_size": 2048,
        "num_hidden_layers": 4,
        "layer_types": [*["sliding_attention"] * 3, "full_attention"],
        "num_kv_shared_layers": 4,
        "num_attention_heads": 4,
        "hidden_size_per_layer_input": 0,
    },
}


def test_an_assistant(cpu: Profile) -> None:
    """Of a model as large as Gemma 4 E2B; its own sizes are made up."""
    model = DecoderSpec.from_hf(GEMMA)
    plain = with_sources(read_assistant(ASSISTANT), model)
    nearest = with_sources(read_assistant(ASSISTANT | {"use_ordered_embeddings": True}), model)
    plans = [speculation_plan(model, cpu, REQUEST, one) for one in (plain, nearest)]
    assert all(one.draft == "the assistant" for one in plans)
    assert plans[1].draft_ratio < plans[0].draft_ratio < 0.2
    assert plain.parameters < plans[0].draft_bytes < 2 * plain.parameters
    assert plans[1].draft_bytes < plans[0].draft_bytes, "its output matrix is not packed"
    with pytest.raises(BadInput, match="assistants run on ONNX Runtime's CPU, not on"):
        speculation_plan(model, load_profile("rtx-5090"), PlanRequest(), plain)


def test_an_assistant_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = tmp_path / "model", tmp_path / "assistant"
    for folder, config in zip(folders, (GEMMA, ASSISTANT), strict=True):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
    command = ["plan", str(folders[0]), "--target", "cpu", "--draft", str(folders[1])]
    main([*command, "--precision", "int8", "--json"])
    found = json.loads(capsys.readouterr().out)["speculation"]
    assert found["draft"] == "the assistant"
    assert found["draft_bytes"] > 0


def test_an_assistant_with_a_shorter_context(cpu: Profile) -> None:
    model = DecoderSpec.from_hf(GEMMA)
    assistant = with_sources(read_assistant(ASSISTANT), model)
    short = msgspec.structs.replace(assistant, max_position_embeddings=1024)
    with pytest.raises(BadInput, match=r"the assistant has a context of 1024 .* --context 1024"):
        speculation_plan(model, cpu, REQUEST, short)
    request = msgspec.structs.replace(REQUEST, context=1024)
    assert speculation_plan(model, cpu, request, short).draft == "the assistant"


def test_an_assistant_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only config.json is fetched of a hub id; the hub is replaced by a folder here."""
    folders = tmp_path / "model", tmp_path / "assistant"
    for folder, config in zip(folders, (GEMMA, ASSISTANT), strict=True):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))

    def fetch(name: str, revision: str | None, files: list[str]) -> Path:
        assert (name, files) == ("google/an-assistant", ["config.json"])
        return folders[1]

    monkeypatch.setattr(source, "fetch", fetch)
    monkeypatch.chdir(tmp_path)
    command = ["plan", str(folders[0]), "--target", "cpu", "--draft", "google/an-assistant"]
    assert main([*command, "--precision", "int8", "--json"]) in (0, None)
    assert json.loads(capsys.readouterr().out)["speculation"]["draft"] == "the assistant"
