"""The assistant of a Gemma 4 in the bundle of its model."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import edgelm
from edgelm.bundle import DRAFT, Manifest, TensorContract, read_manifest, verify
from edgelm.bundle.files import check_draft
from edgelm.bundle.manifest import EngineRequirement
from edgelm.bundle.manifest_file import write_manifest
from edgelm.devices.planner.memory.memory_need import draft_bytes
from edgelm.errors import BadBundle
from edgelm.export import delivery
from edgelm.export.bundle.draft_model import export_draft
from edgelm.export.cli import main
from edgelm.export.pipeline import export_model
from edgelm.quantize.precision import Int8
from edgelm.runtime import LanguageModel
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.onnxruntime.ort import OrtEngine
from edgelm.runtime.speculation.drafts.assistant_draft import AssistantDraft
from edgelm.runtime.speculation.drafts.draft_model import DraftModel
from edgelm.spec.assistant import Assistant
from edgelm.speculation import SpeculationMode
from tests.checkpoints.assistants import TorchAssistant, save_assistant
from tests.checkpoints.tiny_chat import save_tiny_chat
from tests.short_texts import decoded

CONTEXT = 256
HISTORY: list[int] = np.random.default_rng(0).integers(4, 320, 40).tolist()
SHARED = {"vocab_size_per_layer_input": 320}
# name -> (model, centroids)
KINDS: dict[str, tuple[str, dict[str, Any], tuple[int, int] | None]] = {
    "shared": ("gemma4", SHARED, None),
    "dense": ("gemma4-dense", {}, None),
    "centroids": ("gemma4", SHARED, (16, 3)),
}


def save(folder: Path, kind: str = "shared", **over: Any) -> tuple[Path, Path]:
    """A model and its assistant."""
    name, own, centroids = KINDS[kind]
    model = save_tiny_chat(folder / "model", name, context=CONTEXT, **own)
    return model, save_assistant(folder / "assistant", model, centroids=centroids, **over)


def logits(lm: LanguageModel, history: list[int], count: int) -> Any:
    """Logits [count, vocab_size] of what a bundle's assistant drafts behind a history."""
    draft = lm._sequences.slots[0].draft
    assert isinstance(draft, AssistantDraft)
    lm.session.rewind(0)
    lm.session.advance(np.array(history[:-1]))
    past, model = len(history) - 1, draft._model
    runs = draft._engine.runs(past, model.loaded[1], model.read_rows(CONTEXT))
    assert model.hidden is not None
    hidden, token, found = model.hidden.rows(past - 1, past), history[-1], []
    for number in range(count):
        found.append(runs.run(token, None if number else hidden).copy())
        token = int(found[-1].argmax())
    return np.stack(found)


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_transformers_does(tmp_path: Path, kind: str) -> None:
    model, assistant = save(tmp_path, kind)
    export_model(model, tmp_path / "b", precision="fp32", gate="none", assistant=assistant)
    theirs = TorchAssistant(model, assistant)
    with edgelm.load(tmp_path / "b", threads=1, speculation="draft") as lm:
        for length in (2, 5, 9, 10, 40):  # windows hold 8 tokens
            expected = theirs.logits(HISTORY[:length], 4).numpy()
            given = logits(lm, HISTORY[:length], 4)
            np.testing.assert_allclose(given, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def assistant_manifest(folder: Path) -> Manifest:
    return read_manifest(folder / DRAFT)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a model whose layers share no keys, with its assistant."""
    folder = tmp_path_factory.mktemp("dense")
    model, assistant = save(folder, "dense")
    options: Any = {"precision": "int8", "gate": "none", "assistant": assistant}
    export_model(model, folder / "bundle", **options)
    return folder / "bundle"


def test_the_manifests_describe_both(dense: Path) -> None:
    manifest, draft = read_manifest(dense), assistant_manifest(dense)
    verify(dense, manifest)
    assert manifest.spec.assistant is None
    assert manifest.graph.outputs["hidden"].shape == (1, "T", 64)
    assert draft.spec.assistant == Assistant(model_size=64)
    assert draft.graph.outputs["logits"].shape == (1, "P", 320)
    assert draft.graph.outputs["hidden"].shape == (1, "P", 64)
    assert [layer.shares_kv_of for layer in draft.spec.layers] == [4, 4, 6, 6]
    assert draft.graph.inputs["past.4.key"].shape == (1, 2, "capacity", 16)
    assert draft.graph.inputs["past.6.value"] == TensorContract(
        "past.6.value", "int8", (1, 1, "capacity", 32)
    )
    assert draft.graph.cache.layers == ()
    assert {f"{DRAFT}/bundle.json", f"{DRAFT}/model.onnx.data"} <= manifest.files.keys()
    assert f"{DRAFT}/tokenizer.json" not in manifest.files
    assert draft.limits.prefill_chunk == 1
    stored = draft.spec.weight_bytes(8.5) + 2 * 4 * CONTEXT * (8 + 16)  # rotary tables
    assert draft.weight_bytes == pytest.approx(stored, rel=0.02)


def test_layers_that_it_reads_keep_all_tokens(dense: Path) -> None:
    """Of five layers with a window of 8, all but the last one keep 24 rows."""
    cut = [layer.rows for layer in read_manifest(dense).graph.cache.layers]
    assert cut == [24, 24, None, 24, None, None, None]


def test_its_matrices_have_eight_bits_where_those_of_the_model_have_fewer(tmp_path: Path) -> None:
    model, assistant = save(tmp_path)
    command = [str(model), "-o", str(tmp_path / "b"), "--assistant", str(assistant)]
    with decoded(64):
        assert main([*command, "--precision", "int4", "--gate", "off", "--method", "rtn"]) == 0
    precision = assistant_manifest(tmp_path / "b").precision
    assert set(precision) == {"assistant.input", "assistant.output", "lm_head"} | {
        f"layers.{index}.{part}"
        for index in range(4)
        for part in ("attention.qkv", "attention.o", "mlp.gate_up", "mlp.down")
    }
    assert all(isinstance(one, Int8) for one in precision.values())


@pytest.mark.parametrize("kind", KINDS)
def test_an_8_bit_cache(tmp_path: Path, kind: str) -> None:
    """Rounded keys and values, with the scales of the model's layers; weights are fp32."""
    model, assistant = save(tmp_path, kind)
    options: Any = {"precision": "fp32", "kv": "int8", "gate": "none"}
    export_model(model, tmp_path / "b", assistant=assistant, **options)
    theirs = TorchAssistant(model, assistant)
    with edgelm.load(tmp_path / "b", threads=1, speculation="draft") as lm:
        for length in (5, 40):
            expected = theirs.logits(HISTORY[:length], 1).numpy()
            given = logits(lm, HISTORY[:length], 1)
            assert 0 < np.abs(given - expected).max() < 0.05 * np.abs(expected).max()


def test_a_wider_cache_in_place_of_one_of_8_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was folded into keys and values for int8 stays there in fp32."""
    model, assistant = save(tmp_path)
    failed = iter([False, False])  # for the self-test, and for the gate
    monkeypatch.setattr(delivery, "passes", lambda *_: next(failed, True))
    options: Any = {"precision": "int8", "exceptions": {"*": "fp32"}, "assistant": assistant}
    with decoded(64):
        manifest = export_model(model, tmp_path / "b", **options)
    assert (manifest.kv, assistant_manifest(tmp_path / "b").kv) == ("fp32", "fp32")
    expected = TorchAssistant(model, assistant).logits(HISTORY, 4).numpy()
    with edgelm.load(tmp_path / "b", threads=1, speculation="draft") as lm:
        given = logits(lm, HISTORY, 4)
        np.testing.assert_allclose(given, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("target", ["rtx-5090", "jetson-orin-nano"])
def test_other_engines_are_refused(
    tmp_path: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, assistant = save(tmp_path, "dense")
    for options in (["--plan"], ["-o", str(tmp_path / "bundle")]):
        command = [str(model), "--target", target, "--assistant", str(assistant), *options]
        assert main(command) == 2
        message = capsys.readouterr().err
        assert "assistants run on ONNX Runtime's CPU, not on" in message
        assert "without the assistant (leave out --assistant or --draft)" in message
    assert not (tmp_path / "bundle").exists()


def test_options_that_exclude_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, assistant = save(tmp_path)
    adapters = ["--switchable", "--adapter", f"one={tmp_path}"]
    for beside, message in ((["--draft-head"], "has one draft"), (adapters, "exclude each other")):
        for options in (["--plan"], ["-o", str(tmp_path / "bundle")]):
            assert main([str(model), "--assistant", str(assistant), *beside, *options]) == 2
            assert message in capsys.readouterr().err
    command = [str(model), "--draft-for", str(tmp_path), "--assistant", str(assistant)]
    assert main(command) == 2
    assert "leave out --assistant with --draft-for" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_counts_it(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, assistant = save(tmp_path, kind)
    found = []
    for own in ([], ["--assistant", str(assistant)]):
        assert main([str(model), "--plan", "--precision", "int8", "--json", *own]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["draft_bytes"] == 0
    options: Any = {"precision": "int8", "gate": "none"}
    export_model(model, tmp_path / "b", assistant=assistant, **options)
    added = draft_bytes(assistant_manifest(tmp_path / "b"), read_manifest(tmp_path / "b"), CONTEXT)
    assert found[1]["draft_bytes"] == pytest.approx(added, rel=0.1)
    whole = (256 - 5 * 24) * 64 if kind == "dense" else 0  # rows of the layer that it reads
    assert found[1]["kv_bytes"] - found[0]["kv_bytes"] == whole


def test_an_assistant_is_not_a_model(dense: Path) -> None:
    with pytest.raises(BadBundle, match="is an assistant, which generates no text by itself"):
        edgelm.load(dense / DRAFT)


def test_without_it_no_hidden_states_are_kept(dense: Path) -> None:
    """They are not in the plan of a model that is loaded without its draft."""
    modes: tuple[tuple[SpeculationMode, bool], ...]
    modes = (("off", False), ("lookup", False), ("draft", True))
    for mode, kept in modes:
        with edgelm.load(dense, threads=1, speculation=mode, sequences=2) as lm:
            for slot in lm._sequences.slots:
                assert isinstance(slot.session, EngineSession)
                assert isinstance(slot.session.engine, OrtEngine)
                assert (slot.session.engine.hidden is not None) == kept
            assert lm.generate("A stone", max_tokens=4)


def test_a_changed_file_of_it(dense: Path, tmp_path: Path) -> None:
    """The remedy is that of an assistant."""
    copy = shutil.copytree(dense, tmp_path / "bundle")
    manifest = read_manifest(copy)
    name = "draft/model.onnx.data"
    files = {one: entry for one, entry in manifest.files.items() if one != name}
    write_manifest(copy, msgspec.structs.replace(manifest, files=files))
    with pytest.raises(BadBundle, match="export the model again with --assistant"):
        edgelm.load(copy, threads=1)


def test_an_assistant_beside_another_model_is_refused(dense: Path, tmp_path: Path) -> None:
    """Without hidden states, with another cache, with windows, and of another size."""
    model, assistant = dense.parent / "model", dense.parent / "assistant"
    shared = save(tmp_path / "shared")
    cases: list[tuple[str, Path, dict[str, Any], str]] = [
        ("plain", model, {"precision": "int8", "context": 100}, "does not give"),
        ("fp32", model, {"precision": "fp32", "assistant": assistant}, "a cache of type int8"),
        ("shared", shared[0], {"precision": "int8", "assistant": shared[1]}, "reads keys of"),
    ]
    for name, source, own, message in cases:
        folder = tmp_path / name / "bundle"
        export_model(source, folder, gate="none", **own)
        if (folder / DRAFT).exists():
            shutil.rmtree(folder / DRAFT)
        shutil.copytree(dense / DRAFT, folder / DRAFT)
        manifest, draft = read_manifest(folder), read_manifest(folder / DRAFT)
        with pytest.raises(BadBundle, match=message):
            check_draft(folder / DRAFT, manifest, draft)


def test_manifests_that_contradict_themselves(dense: Path, tmp_path: Path) -> None:
    replace = msgspec.structs.replace
    draft = assistant_manifest(dense)
    parts = replace(draft.graph, segments=draft.graph.parts)
    own = tuple(replace(one, shares_kv_of=None) for one in draft.spec.layers)
    for manifest, message in (
        (replace(draft, graph=parts), "no graph.segments"),
        (replace(draft, spec=replace(draft.spec, layers=own)), "expected layers that read"),
        (replace(draft, spec=replace(draft.spec, assistant=None)), "expected three graph.segments"),
        (replace(draft, spec=replace(draft.spec, assistant=Assistant(32))), r"expected .* 32"),
        (replace(draft, engine=EngineRequirement("onnxruntime-cuda")), "expected 'onnxruntime'"),
    ):
        with pytest.raises(BadBundle, match=message):
            write_manifest(tmp_path, manifest)


def test_a_draft_model_replaces_it(dense: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dense, tmp_path / "bundle")
    export_draft(dense.parent / "model", copy, precision="fp32")
    verify(copy, read_manifest(copy))
    with edgelm.load(copy, threads=1, speculation="draft") as lm:
        assert isinstance(lm._sequences.slots[0].draft, DraftModel)
