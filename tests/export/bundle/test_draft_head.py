"""The draft head of a checkpoint in the bundle of its model."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import edgelm
from edgelm.bundle import DRAFT, read_manifest, verify
from edgelm.bundle.manifest import EngineRequirement
from edgelm.bundle.manifest_file import write_manifest
from edgelm.bundle.roles import gives_hidden
from edgelm.devices.planner.memory.memory_need import draft_bytes
from edgelm.errors import BadBundle, BadInput
from edgelm.export.bundle.draft_model import export_draft
from edgelm.export.cli import main
from edgelm.export.pipeline import export_model
from edgelm.quantize.precision import Int4, Int8
from edgelm.runtime.engines.onnxruntime.ort import OrtEngine
from edgelm.runtime.engines.session import never
from edgelm.runtime.speculation.drafts.draft_model import DraftModel
from tests.checkpoints.draft_heads import TorchHead, save_with_draft_head
from tests.checkpoints.tiny_chat import save_tiny_chat

CONTEXT = 256
TOKENS = np.random.default_rng(0).integers(4, 320, 40)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_with_draft_head(tmp_path_factory.mktemp("head") / "source", context=CONTEXT)


@pytest.fixture(scope="module")
def bundle(source: Path) -> Path:
    folder = source.parent / "bundle"
    export_model(source, folder, precision="fp32", gate="none", draft_head=True)
    return folder


def engine(folder: Path) -> OrtEngine:
    graph = read_manifest(folder).graph
    return OrtEngine(folder, graph, capacity=CONTEXT, prefill_chunk=64, threads=1)


def head_engine(folder: Path) -> OrtEngine:
    graph = read_manifest(folder / DRAFT).graph
    return engine(folder).draft_head(folder / DRAFT, graph, capacity=CONTEXT, threads=1)


@pytest.fixture(scope="module")
def hidden(source: Path) -> torch.Tensor:
    """What the model gives behind its final norm, [tokens, hidden_size]."""
    model: Any = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=False)
    with torch.no_grad():
        found: torch.Tensor = model.model(torch.tensor(TOKENS)[None]).last_hidden_state[0]
    return found


def close(ours: Any, theirs: torch.Tensor) -> None:
    expected = theirs.numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * float(np.abs(expected).max()))


def test_the_model_gives_hidden_states_of_all_tokens(bundle: Path, hidden: torch.Tensor) -> None:
    model = engine(bundle)
    model.run(TOKENS[:30], 0, logits=1, cancelled=never)
    model.run(TOKENS[30:33], 30, logits=3, cancelled=never)
    for at in range(33, len(TOKENS)):
        model.run(TOKENS[at : at + 1], at, logits=1, cancelled=never)
    assert model.hidden is not None
    close(model.hidden.rows(0, len(TOKENS)), hidden)
    model.close()


def test_the_head_computes_what_transformers_layers_do(
    source: Path, bundle: Path, hidden: torch.Tensor
) -> None:
    tokens, states = TOKENS[1:], hidden[:-1]
    logits, own = TorchHead(source).load(source)(tokens.tolist(), states)
    head = head_engine(bundle)
    for start, end in [(0, 20), (20, 23), (23, 24), (24, 39)]:  # through its cache
        row, state = head.run_head(tokens[start:end], start, states[start:end].numpy())
        close(row, logits[end - 1 : end])
        close(state, own[end - 1 : end])
    head.close()


def test_its_logits_depend_on_the_hidden_states(bundle: Path, hidden: torch.Tensor) -> None:
    head, states = head_engine(bundle), hidden[:5].numpy()
    row = head.run_head(TOKENS[1:6], 0, states)[0].copy()
    assert np.abs(head.run_head(TOKENS[1:6], 0, states[::-1])[0] - row).max() > 0.1
    head.close()


def test_the_manifests_describe_both(bundle: Path) -> None:
    manifest, draft = read_manifest(bundle), read_manifest(bundle / DRAFT)
    verify(bundle, manifest)
    size = manifest.spec.hidden_size
    assert not manifest.spec.draft_head
    assert manifest.graph.outputs["hidden"].shape == (1, "T", size)
    assert draft.spec.draft_head
    assert draft.graph.inputs["hidden"].shape == (1, "T", size)
    assert draft.graph.outputs.keys() == {"hidden"}
    assert draft.graph.outputs["hidden"].shape == (1, "P", size)
    assert {f"{DRAFT}/bundle.json", f"{DRAFT}/model.onnx.data"} <= manifest.files.keys()
    assert draft.spec.num_hidden_layers == 1
    rotary_tables = draft.weight_bytes - 4 * draft.spec.parameters
    assert rotary_tables == 2 * 4 * CONTEXT * 8
    tables = manifest.spec.tables * manifest.spec.embedding_parameters
    assert draft.spec.parameters < tables + draft.spec.linear_parameters


def test_without_the_option_the_graph_is_that_of_any_model(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Byte for byte that of the same checkpoint without a head; and the export says so."""
    lines: list[str] = []
    options: Any = {"precision": "fp32", "gate": "none", "progress": lines.append}
    export_model(source, tmp_path / "with", **options)
    assert any("mtp drafts tokens: --draft-head exports it" in line for line in lines)
    plain = shutil.copytree(source, tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    own = {name: one for name, one in tensors.items() if not name.startswith("mtp.")}
    save_file(own, plain / "model.safetensors", {"format": "pt"})
    export_model(plain, tmp_path / "without", **options)
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    manifest = read_manifest(tmp_path / "with")
    assert not gives_hidden(manifest.graph)
    assert not any(name.startswith(f"{DRAFT}/") for name in manifest.files)


def test_its_matrices_have_the_precision_of_the_models(source: Path, tmp_path: Path) -> None:
    command = [str(source), "-o", str(tmp_path / "bundle"), "--draft-head", "--gate", "off"]
    command += ["--precision", "int4", "--group-size", "32", "--layer", "lm_head=int8"]
    assert main([*command, "--layer", "layers.3.mlp.*=int8", "--method", "rtn"]) == 0
    model, draft = (read_manifest(tmp_path / "bundle" / name) for name in ("", DRAFT))
    assert not {"lm_head", "embedding"} & draft.precision.keys()
    assert isinstance(draft.precision["fusion"], Int4)
    assert draft.precision["layers.0.attention.qkv"] == model.precision["layers.3.attention.qkv"]
    assert isinstance(draft.precision["layers.0.mlp.down"], Int8)
    assert draft.kv == "fp32"


def test_a_checkpoint_without_one_is_refused(tmp_path: Path) -> None:
    plain = save_tiny_chat(tmp_path / "plain", "qwen3.5")
    with pytest.raises(BadInput, match="has no draft head: no tensors named mtp"):
        export_model(plain, tmp_path / "bundle", draft_head=True)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("target", ["rtx-5090", "jetson-orin-nano"])
def test_other_engines_are_refused(
    source: Path, tmp_path: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in (["--plan"], ["-o", str(tmp_path / "bundle")]):
        assert main([str(source), "--target", target, "--draft-head", *options]) == 2
        message = capsys.readouterr().err
        assert "draft heads run on ONNX Runtime's CPU, not on" in message
        assert "leave out --draft-head" in message


def test_adapters_that_requests_choose_are_refused_beside_it(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapters = ["--switchable", "--adapter", f"one={tmp_path}"]
    for options in (["--plan"], ["-o", str(tmp_path / "bundle")]):
        assert main([str(source), "--draft-head", *adapters, *options]) == 2
        assert "exclude each other" in capsys.readouterr().err


def test_a_plan_counts_it(source: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    totals = []
    for options in ([], ["--draft-head"]):
        assert main([str(source), "--plan", "--precision", "fp32", "--json", *options]) == 0
        totals.append(json.loads(capsys.readouterr().out))
    assert totals[0]["draft_bytes"] == 0
    planned = totals[1]["draft_bytes"]
    added = draft_bytes(read_manifest(bundle / DRAFT), read_manifest(bundle), CONTEXT)
    assert planned == pytest.approx(added, rel=0.1)
    assert main([str(source), "--plan", "--draft-head"]) == 0
    assert "draft head" in capsys.readouterr().out


def test_a_head_is_not_a_model(bundle: Path) -> None:
    with pytest.raises(BadBundle, match="is a draft head, which generates no text by itself"):
        edgelm.load(bundle / DRAFT)


def test_a_head_beside_another_model_is_refused(source: Path, bundle: Path, tmp_path: Path) -> None:
    """One whose graph gives no hidden states, and one of another size."""
    export_model(source, tmp_path / "bundle", precision="fp32", gate="none")
    shutil.copytree(bundle / DRAFT, tmp_path / "bundle" / DRAFT)
    with pytest.raises(BadBundle, match="no hidden states"):
        _load_with_draft(tmp_path / "bundle", bundle)
    small = save_with_draft_head(tmp_path / "small", context=CONTEXT, hidden_size=32)
    export_model(small, tmp_path / "other", precision="fp32", gate="none", draft_head=True)
    shutil.rmtree(tmp_path / "other" / DRAFT)
    shutil.copytree(bundle / DRAFT, tmp_path / "other" / DRAFT)
    with pytest.raises(BadBundle, match="gives 32 numbers"):
        _load_with_draft(tmp_path / "other", bundle)


def test_manifests_that_contradict_themselves(bundle: Path, tmp_path: Path) -> None:
    replace = msgspec.structs.replace
    model, head = read_manifest(bundle), read_manifest(bundle / DRAFT)
    uncut = replace(model.graph, segments=model.graph.segments[:2])
    parts = replace(head.graph, segments=head.graph.parts)
    for manifest, message in (
        (replace(model, graph=uncut), "expected three graph.segments"),
        (replace(head, graph=parts), "expected no graph.segments"),
        (replace(head, spec=replace(head.spec, draft_head=False)), "has the roles embedded"),
        (replace(model, engine=EngineRequirement("onnxruntime-cuda")), "expected 'onnxruntime'"),
        (replace(head, engine=EngineRequirement("onnxruntime-cuda")), "expected 'onnxruntime'"),
    ):
        with pytest.raises(BadBundle, match=message):
            write_manifest(tmp_path, manifest)


def test_a_draft_model_replaces_it(source: Path, bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    export_draft(source, copy, precision="fp32")
    assert not read_manifest(copy / DRAFT).spec.draft_head
    with edgelm.load(copy, threads=1, speculation="draft") as lm:
        assert isinstance(lm._sequences.slots[0].draft, DraftModel)
        assert lm.generate(TOKENS[:9].tolist(), max_tokens=9).tokens


def _load_with_draft(folder: Path, other: Path) -> None:
    """Load a bundle whose manifest lists the draft of another."""
    manifest = read_manifest(folder)
    files = {name: one for name, one in manifest.files.items() if not name.startswith(DRAFT)}
    theirs = read_manifest(other).files.items()
    files |= {name: one for name, one in theirs if name.startswith(f"{DRAFT}/")}
    write_manifest(folder, msgspec.structs.replace(manifest, files=files))
    edgelm.load(folder, threads=1).close()


def test_options_that_a_draft_model_does_not_have(
    source: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(source), "--draft-for", str(bundle), "--draft-head"]) == 2
    assert "leave out --draft-head with --draft-for" in capsys.readouterr().err
