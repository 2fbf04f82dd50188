"""Bundles of embedding models: the gate, the manifest, what is refused."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

import edgelm
from edgelm.bundle import read_manifest
from edgelm.bundle.records.embedding import MAX_DISTANCE
from edgelm.checkpoint.source import open_checkpoint
from edgelm.errors import BadBundle, BadInput, GateFailed
from edgelm.export.bundle.draft_model import export_draft
from edgelm.export.embedding.vectors import compare_vectors
from edgelm.export.pipeline import export_model
from tests.checkpoints.adapters import modules_of, random_factors, save_adapter
from tests.checkpoints.sentence_folders import save_sentence_model

TEXTS = ["The miller waits until the level drops.", "Garnets are common.", "blue"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sentence_model(tmp_path_factory.mktemp("sentences") / "source")


@pytest.mark.slow
def test_auto_finds_the_smallest_that_passes(source: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    manifest = export_model(source, tmp_path / "bundle", progress=lines.append)
    record = manifest.embedding
    assert record is not None
    gate = record.gate
    assert gate is not None
    assert gate.passed
    assert gate.figures.mean <= gate.limit == MAX_DISTANCE["8-bit"]
    assert sum("failed" in line for line in lines) == 1  # four bits are too few for it
    assert {type(one).__name__ for one in manifest.precision.values()} == {"Int8"}
    assert "lm_head" not in manifest.precision
    assert manifest.source is not None
    assert manifest.source.agrees
    assert manifest.kv == "fp32"
    assert not (tmp_path / "bundle" / "chat_template.jinja").exists()
    with edgelm.load(tmp_path / "bundle") as lm, edgelm.load(_plain(source, tmp_path)) as plain:
        assert (lm.embed(TEXTS) * plain.embed(TEXTS)).sum(1).min() > 0.99


def _plain(source: Path, folder: Path) -> Path:
    export_model(source, folder / "plain", precision="fp32", gate="off")
    return folder / "plain"


@pytest.mark.slow
def test_a_failed_gate_writes_nothing_unless_it_is_off(source: Path, tmp_path: Path) -> None:
    with pytest.raises(GateFailed, match=r"cosine distance .* expected at most 0.03"):
        export_model(source, tmp_path / "bundle", precision="int4")
    assert not (tmp_path / "bundle").exists()
    manifest = export_model(source, tmp_path / "bundle", precision="int4", gate="off")
    assert manifest.embedding is not None
    assert manifest.embedding.gate is not None
    assert not manifest.embedding.gate.passed
    assert "FAILED, not enforced" in (tmp_path / "bundle" / "README.md").read_text()


def test_the_graph_for_a_gpu_is_checked_here(source: Path, tmp_path: Path) -> None:
    manifest = export_model(
        source,
        tmp_path / "bundle",
        target="h100-sxm-80gb",
        engine="onnxruntime-cuda",
        precision="fp16",
    )
    assert manifest.embedding is not None
    assert manifest.embedding.gate is not None
    assert 0 < manifest.embedding.gate.figures.mean < MAX_DISTANCE["unquantized"]


def test_tensorrt_is_refused_by_plan(source: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"it is an embedding model.*; onnxruntime"):
        export_model(source, tmp_path / "bundle", target="jetson-orin-nano-8gb", engine="tensorrt")


def test_a_maximum_size_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="maximum size is for language models"):
        export_model(source, tmp_path / "bundle", max_size="1MB")


def test_vectors_are_always_measured(source: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="gate none is for language models"):
        export_model(source, tmp_path / "bundle", precision="int8", gate="none")


def test_an_older_runtime_does_not_take_it_for_a_language_model(
    source: Path, tmp_path: Path
) -> None:
    bundle = _plain(source, tmp_path)
    path = bundle / "bundle.json"
    manifest = msgspec.json.decode(path.read_bytes())
    del manifest["embedding"], manifest["spec"]["has_head"]  # which it does not read
    path.write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(BadBundle, match="has the roles hidden, expected logits"):
        read_manifest(bundle)


def test_a_manifest_that_contradicts_itself_is_refused(source: Path, tmp_path: Path) -> None:
    bundle = _plain(source, tmp_path)
    path = bundle / "bundle.json"
    good = msgspec.json.decode(path.read_bytes())
    settings = good["embedding"]["settings"]
    for change, error in [
        ({"embedding": None}, "the field embedding is missing"),
        ({"embedding": {**good["embedding"], "dimensions": 32}}, "dimensions is 32"),
        (
            {"embedding": {**good["embedding"], "settings": {**settings, "pooling": "max"}}},
            "pooling",
        ),
        (
            {"embedding": {**good["embedding"], "settings": {**settings, "default_prompt": "x"}}},
            "default_prompt 'x'",
        ),
    ]:
        path.write_bytes(msgspec.json.encode(good | change))
        with pytest.raises(BadBundle, match=error):
            read_manifest(bundle)


def test_distances_are_of_directions() -> None:
    vectors = np.eye(3, dtype=np.float32) + 0.1
    assert compare_vectors(vectors, 5 * vectors).mean < 1e-6
    turned = compare_vectors(vectors, np.roll(vectors, 1, axis=1))
    assert turned.mean == pytest.approx(1 - (0.21 + 0.01 + 0.01 + 0.01) / 1.23, abs=0.2)
    assert turned.texts == 3


def test_no_draft_model_is_or_has_an_embedding_model(source: Path, tmp_path: Path) -> None:
    bundle = _plain(source, tmp_path)
    with pytest.raises(BadInput, match="neither drafts tokens nor uses a draft model"):
        export_draft(source, bundle)


def test_an_adapter_of_the_table_leaves_the_model_without_head(
    source: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(source)
    table = checkpoint.tensor("model.embed_tokens.weight").flip(0)
    tensors = random_factors(checkpoint, modules_of(checkpoint))
    tensors["model.embed_tokens.weight"] = table
    lora = save_adapter(tmp_path / "lora", tensors, modules_to_save=["embed_tokens"])
    manifest = export_model(source, tmp_path / "bundle", precision="fp32", gate="off", adapter=lora)
    assert "lm_head" not in manifest.precision
    with edgelm.load(tmp_path / "bundle") as lm, edgelm.load(_plain(source, tmp_path)) as plain:
        assert not np.allclose(lm.embed(TEXTS), plain.embed(TEXTS), atol=1e-3)
