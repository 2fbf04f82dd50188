"""From a source folder to a bundle: what is written, with which precision."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from edgelm.bundle import MANIFEST, Manifest, read_manifest, verify
from edgelm.checkpoint.student import Figure, StageRecord, StudentRecord, write_student_record
from edgelm.errors import BadCheckpoint, BadInput, DoesNotFit
from edgelm.export.pipeline import export_model
from edgelm.export.source.text import GATE
from edgelm.quantize.precision import Fp32, Int4, Int8
from tests.checkpoints.tiny_chat import CONTEXT, TEMPLATE, VOCAB, save_tiny_chat
from tests.export.graphs import cpu_session
from tests.folders import contents

Gate = Literal["on", "off"]


@pytest.fixture(scope="module")
def bundle(tiny_chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("pipeline") / "bundle"
    export_model(tiny_chat, output, precision="int8")
    return output


@pytest.mark.parametrize(
    ("precision", "gate", "gate_class", "kv"),
    [
        ("fp32", "on", "fp32", "fp32"),
        ("int8", "on", "8-bit", "int8"),
        ("int4", "off", "4-bit", "int8"),
        ("auto", "on", "4-bit", "int8"),
    ],
    ids=lambda value: str(value),
)
def test_bundle_verifies_and_runs(
    tiny_chat: Path, tmp_path: Path, precision: str, gate: Gate, gate_class: str, kv: str
) -> None:
    output = tmp_path / "new" / "bundle"
    manifest = export_model(tiny_chat, output, precision=precision, gate=gate)
    assert read_manifest(output) == manifest
    verify(output, manifest)
    assert manifest.gate is not None
    assert manifest.gate.gate_class == gate_class
    assert manifest.gate.passed is (precision != "int4")
    assert manifest.gate.enforced is (gate == "on")
    assert manifest.kv == manifest.graph.cache.dtype == kv
    assert set(manifest.files) == set(contents(output)) - {"bundle.json"}
    with cpu_session(output, manifest.graph, capacity=CONTEXT) as session:
        logits = session.advance(np.arange(20), logits=20)
    assert logits.shape == (20, VOCAB)
    assert np.isfinite(logits).all()


@pytest.mark.slow
def test_smaller_precisions_make_smaller_bundles_and_auto_lies_between(
    tiny_chat: Path, tmp_path: Path
) -> None:
    sizes = {
        name: export_model(tiny_chat, tmp_path / "b", precision=name, gate="off").weight_bytes
        for name in ("fp32", "int8", "auto", "int4")
    }
    assert sizes["fp32"] > sizes["int8"] > sizes["auto"] > sizes["int4"]


def test_auto_mixes_four_and_eight_bits(tiny_chat: Path, tmp_path: Path) -> None:
    manifest = export_model(tiny_chat, tmp_path / "bundle")
    kinds = {type(precision) for precision in manifest.precision.values()}
    assert kinds == {Int4, Int8}
    assert not any(path.name.startswith("scratch") for path in (tmp_path / "bundle").iterdir())


@pytest.mark.slow
def test_auto_stays_at_four_bits_where_they_pass(tmp_path: Path) -> None:
    source = save_tiny_chat(tmp_path / "source", "gemma2")
    manifest = export_model(source, tmp_path / "bundle")
    assert {type(precision) for precision in manifest.precision.values()} == {Int4}


@pytest.mark.slow
def test_auto_within_a_size_is_the_best_that_fits(tiny_chat: Path, tmp_path: Path) -> None:
    small, large = (
        export_model(tiny_chat, tmp_path / str(size), max_size=size, gate="off")
        for size in (90_000, 110_000)
    )
    assert small.files["model.onnx.data"].bytes <= 90_000
    assert 90_000 < large.files["model.onnx.data"].bytes <= 110_000
    assert small.gate is not None
    assert large.gate is not None
    assert large.gate.figures.kl < small.gate.figures.kl


def test_a_size_that_nothing_fits(tiny_chat: Path, tmp_path: Path) -> None:
    with pytest.raises(DoesNotFit, match=r"the smallest mixture has .* MB of weights, 0\.0 MB are"):
        export_model(tiny_chat, tmp_path / "b", max_size="10KB", gate="off")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "hqq"])
def test_every_method_writes_a_bundle(method: str, tiny_chat: Path, tmp_path: Path) -> None:
    manifest = export_model(tiny_chat, tmp_path / "b", precision="int4", method=method, gate="off")
    for group, precision in manifest.precision.items():  # 96 inputs, or 64
        assert precision == Int4(32 if group.endswith("down") else 64)
    assert manifest.gate is not None
    assert manifest.gate.figures.kl < 1.0


def test_group_size_and_symmetry_reach_the_manifest(tiny_chat: Path, tmp_path: Path) -> None:
    manifest = export_model(
        tiny_chat, tmp_path / "b", precision="int4", group_size=16, symmetric=True, gate="off"
    )
    assert set(manifest.precision.values()) == {Int4(group_size=16, symmetric=True)}


def test_later_patterns_win(tiny_chat: Path, tmp_path: Path) -> None:
    exceptions = {"layers.0.*": "int8", "*.attention.o": "fp32"}
    manifest = export_model(
        tiny_chat, tmp_path / "b", precision="int4", exceptions=exceptions, gate="off"
    )
    assert manifest.precision["layers.0.attention.qkv"] == Int8()
    assert manifest.precision["layers.0.attention.o"] == Fp32()
    assert manifest.precision["layers.3.attention.o"] == Fp32()
    assert manifest.precision["layers.3.mlp.down"] == Int4(32)
    assert manifest.precision["lm_head"] == Int4()


def test_weight_bytes_are_those_of_the_data_file(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    size = (bundle / manifest.graph.data).stat().st_size
    padding = 64 * (len(manifest.precision) * 3 + manifest.spec.num_hidden_layers * 2 + 5)
    assert size - padding <= manifest.weight_bytes <= size


def test_the_same_export_writes_the_same_bytes(
    tiny_chat: Path, bundle: Path, tmp_path: Path
) -> None:
    export_model(tiny_chat, tmp_path / "again", precision="int8")
    first, second = contents(bundle), contents(tmp_path / "again")
    manifests = [json.loads(files.pop(MANIFEST)) for files in (first, second)]
    assert first == second
    for manifest in manifests:
        del manifest["created"], manifest["sha256"]  # the time, and the hash with it
    assert manifests[0] == manifests[1]


def test_manifest_names_its_source_and_texts(tiny_chat: Path, bundle: Path) -> None:
    manifest = read_manifest(bundle)
    weights = (tiny_chat / "model.safetensors").read_bytes()
    assert manifest.lineage.sha256 == hashlib.sha256(weights).hexdigest()
    assert manifest.lineage.license == "apache-2.0"
    assert Path(manifest.lineage.source).name == tiny_chat.name
    assert manifest.gate is not None
    assert manifest.gate.text == "gate.jsonl"
    assert manifest.gate.text_sha256 == hashlib.sha256(GATE.read_bytes()).hexdigest()
    assert manifest.gate.figures.tokens == 2 * CONTEXT
    assert manifest.limits.context == CONTEXT


@pytest.mark.usefixtures("whole_texts")
def test_a_gate_runs_eight_sequences(tiny_chat: Path, tmp_path: Path) -> None:
    manifest = export_model(tiny_chat, tmp_path / "bundle", precision="fp32")
    assert manifest.gate is not None
    assert manifest.gate.figures.tokens == 8 * CONTEXT


def test_card_does_not_tell_where_on_this_machine_the_source_lay(
    tiny_chat: Path, bundle: Path
) -> None:
    assert read_manifest(bundle).lineage.source == tiny_chat.name
    assert read_manifest(bundle).lineage.path == str(tiny_chat.resolve())
    assert str(tiny_chat.parent) not in (bundle / "README.md").read_text()


def test_card_states_the_figures(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest.gate is not None
    card = (bundle / "README.md").read_text()
    figures = manifest.gate.figures
    assert f"{figures.kl:.4f} ± {figures.kl_error:.4f} nats" in card
    assert f"{figures.top1:.1%}" in card
    assert f"×{figures.perplexity_ratio:.3f}" in card
    assert f"{8 * manifest.weight_bytes / manifest.spec.parameters:.2f} bits per weight" in card
    assert "17 groups int8 g32" in card
    assert "license: apache-2.0" in card
    assert "| gate (8-bit) | passed |" in card


def test_card_says_that_a_failed_gate_was_off(tiny_chat: Path, tmp_path: Path) -> None:
    export_model(tiny_chat, tmp_path / "bundle", precision="int4", gate="off")
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "| gate (4-bit) | FAILED, not enforced |" in card


def test_tokenizer_and_template_come_along(tiny_chat: Path, bundle: Path) -> None:
    tokenizer = (tiny_chat / "tokenizer.json").read_bytes()
    assert (bundle / "tokenizer.json").read_bytes() == tokenizer
    assert (bundle / "chat_template.jinja").read_text() == TEMPLATE
    generation = json.loads((bundle / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [3, 2]  # generation's own first, then the model's
    assert generation["temperature"] == 0.7


def test_record_of_compression_is_kept(tiny_chat: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_chat, tmp_path / "source")
    sizes = {"num_hidden_layers": 4, "hidden_size": 64}
    record = StudentRecord(
        teacher="big",
        teacher_sha256="0" * 64,
        teacher_parameters=400,
        parameters=100,
        teacher_shape=sizes | {"num_hidden_layers": 8},
        shape=sizes,
        stages=(StageRecord("distill", tokens=5_000),),
        evaluation={
            "perplexity:text": {"teacher": Figure(10.0), "student": Figure(12.5)},
            "last_word:text": {"student": Figure(0.25, is_share=True)},
        },
    )
    write_student_record(source, record)
    manifest: Manifest = export_model(source, tmp_path / "bundle", precision="int8")
    assert manifest.lineage.compress == record
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "## A student of big" in card
    assert "25% of its teacher's" in card
    assert "| num hidden layers | 8 | 4 |" in card
    assert "distill on 5,000 tokens" in card
    assert "| perplexity:text | 10 |  | 12.5 |" in card
    assert "| last_word:text |  |  | 25.0% |" in card


def test_damaged_record_of_compression(tiny_chat: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_chat, tmp_path / "source")
    (source / "compress.json").write_text('{"teacher": 1}')
    with pytest.raises(BadCheckpoint, match="not a record of a student"):
        export_model(source, tmp_path / "bundle", precision="int8")


@pytest.mark.slow
def test_progress_names_the_stages(tiny_chat: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    export_model(tiny_chat, tmp_path / "bundle", progress=lines.append)
    text = "\n".join(lines)
    for stage in ("exporting", "calibrating", "tried ", "auto chose", "passed"):
        assert stage in text


def test_export_replaces_an_older_bundle(tiny_chat: Path, bundle: Path, tmp_path: Path) -> None:
    old = shutil.copytree(bundle, tmp_path / "bundle")
    before = read_manifest(old)
    manifest = export_model(tiny_chat, old, precision="fp32", gate="off")
    assert read_manifest(old) == manifest != before
    assert set(contents(old)) == {*manifest.files, MANIFEST}, "nothing is left of the older one"
    verify(old, manifest)
    assert list(tmp_path.iterdir()) == [old]


def test_export_keeps_what_others_put_into_a_bundle(
    tiny_chat: Path, bundle: Path, tmp_path: Path
) -> None:
    old = shutil.copytree(bundle, tmp_path / "bundle")
    (old / "notes.txt").write_text("mine")
    before = contents(old)
    with pytest.raises(BadInput, match=r"contains 'notes\.txt', which edgelm did not write"):
        export_model(tiny_chat, old, precision="fp32", gate="off")
    assert contents(old) == before
    assert list(tmp_path.iterdir()) == [old]
