"""The manifest survives writing and reading; a bundle that is damaged is refused by name."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgelm.bundle import (
    CacheContract,
    CacheLayer,
    CompiledEngine,
    FileEntry,
    GraphContract,
    Limits,
    Lineage,
    Manifest,
    TensorContract,
    bundle_file,
    hash_files,
    read_manifest,
    verify,
    write_manifest,
)
from edgelm.bundle.records.gates import Figures, GateResult
from edgelm.checkpoint.student import Figure, StudentRecord
from edgelm.errors import BadBundle
from edgelm.quantize.precision import Fp32, Int4, Int8
from edgelm.spec.decoder import DecoderSpec
from tests.checkpoints.models import tiny_config

FILES = {
    "model.onnx": b"graph",
    "model.onnx.data": bytes(range(256)),
    "tokenizer.json": b"{}",
    "engines/sm87.engine": b"native code",
}
Change = Callable[[dict[str, Any]], None]


STUDENT = StudentRecord(
    teacher="org/teacher",
    teacher_sha256="aa",
    teacher_parameters=100,
    parameters=70,
    teacher_shape={"num_hidden_layers": 4},
    shape={"num_hidden_layers": 3},
    evaluation={"kl": {"student": Figure(0.1)}},
)


def manifest_of(files: dict[str, FileEntry]) -> Manifest:
    spec = DecoderSpec.from_hf(tiny_config("gemma3").to_dict())
    return Manifest(
        schema_version=1,
        edgelm_version="0.1.0",
        created="2026-01-01T00:00:00+00:00",
        target="cpu",
        spec=spec,
        precision={"embedding": Fp32(), "a": Int8(64), "b": Int4(128, symmetric=True)},
        kv="int8",
        weight_bytes=1234,
        limits=Limits(context=64, prefill_chunk=16),
        gate=GateResult("4-bit", Figures(0.05, 0.9, 1.01, 12.5, 512), True, True, "text", "00"),
        lineage=Lineage("org/model", "ff", revision="abc", license="mit", compress=STUDENT),
        graph=GraphContract(
            file="model.onnx",
            data="model.onnx.data",
            dialect="ort",
            opsets={"ai.onnx": 24},
            inputs={
                "tokens": TensorContract("ids", "int64", (1, "T")),
                "past_length": TensorContract("past", "int64", (1,)),
                "last_position": TensorContract("last", "int32", (1,)),
                "total_length": TensorContract("total", "int32", ()),
                "logits_positions": TensorContract("rows", "int64", ("P",)),
            },
            outputs={"logits": TensorContract("out", "float32", (1, "P", spec.vocab_size))},
            cache=CacheContract(
                "int8",
                spec.num_key_value_heads,
                spec.head_dim,
                tuple(
                    CacheLayer(f"pk.{layer}", f"pv.{layer}", f"k.{layer}", f"v.{layer}")
                    for layer in range(spec.num_hidden_layers)
                ),
            ),
        ),
        files=files,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle of four files that verifies."""
    bundle = tmp_path / "bundle"
    for name, data in FILES.items():
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_bytes(data)
    write_manifest(bundle, manifest_of(hash_files(bundle)))
    return bundle


def rewrite(folder: Path, change: Change) -> None:
    path = folder / "bundle.json"
    values = json.loads(path.read_text())
    values.pop("sha256")  # as bundles of edgelm 0.1 have none
    change(values)
    path.write_text(json.dumps(values))


def test_round_trip(folder: Path) -> None:
    assert read_manifest(folder) == manifest_of(hash_files(folder))
    verify(folder, read_manifest(folder))


def test_every_file_but_the_manifest_is_hashed(folder: Path) -> None:
    entries = hash_files(folder)
    assert {name: entry.bytes for name, entry in entries.items()} == {
        name: len(data) for name, data in FILES.items()
    }
    # sha256 of "{}"
    assert entries["tokenizer.json"].sha256 == (
        "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    )


@pytest.mark.parametrize("name", ["", "nowhere"], ids=["empty-folder", "no-folder"])
def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path, name: str) -> None:
    message = r"is not a bundle \(it has no bundle\.json\); make one with"
    with pytest.raises(BadBundle, match=message):
        read_manifest(tmp_path / name)


def test_a_file_is_no_bundle(folder: Path) -> None:
    with pytest.raises(BadBundle, match="is not a bundle"):
        read_manifest(folder / "model.onnx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(schema_version=2), r"schema version 2, this edgelm reads up to 1; upg"),
        (lambda v: v.update(schema_version="1"), r"damaged: .*`\$\.schema_version`"),
        (lambda v: v.pop("schema_version"), "damaged: .*missing required field `schema_version`"),
        (lambda v: v.pop("graph"), "damaged: .*missing required field `graph`"),
        (lambda v: v.update(kv="int3"), r"damaged: .*`\$\.kv`"),
        (lambda v: v["limits"].update(context="long"), r"damaged: .*`\$\.limits\.context`"),
        (lambda v: v["spec"].pop("head_dim"), r"`head_dim` - at `\$\.spec`"),
        (lambda v: v["spec"].update(altup={"streams": 1 << 40}), r"`\$\.spec\.altup\.streams`"),
        (lambda v: v["precision"]["a"].update(type="int3"), r"damaged: .*`\$\.precision\[\.\.\.\]"),
        (lambda v: v["files"].update(x={"bytes": 1}), r"`sha256` - at `\$\.files\[\.\.\.\]`"),
    ],
    ids=[
        "newer-schema",
        "schema-of-wrong-type",
        "no-schema",
        "field-missing",
        "unknown-cache",
        "field-of-wrong-type",
        "nested-field-missing",
        "too-many-streams",
        "unknown-precision",
        "file-without-hash",
    ],
)
def test_damaged_manifest_names_the_field(folder: Path, change: Change, message: str) -> None:
    rewrite(folder, change)
    with pytest.raises(BadBundle, match=message) as caught:
        read_manifest(folder)
    assert str(folder / "bundle.json") in str(caught.value)


@pytest.mark.parametrize("keep", [0, 100], ids=["empty", "cut-off"])
def test_manifest_that_is_no_json(folder: Path, keep: int) -> None:
    path = folder / "bundle.json"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadBundle, match=r"bundle\.json is damaged: .*export the model again"):
        read_manifest(folder)


def test_unknown_fields_of_the_same_schema_are_ignored(folder: Path) -> None:
    rewrite(folder, lambda values: values.update(note="from a later patch release"))
    assert read_manifest(folder) == manifest_of(hash_files(folder))


@pytest.mark.parametrize("name", sorted(FILES))
def test_one_changed_byte_is_found(folder: Path, name: str) -> None:
    data = bytearray(FILES[name])
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BadBundle, match=f"{name} does not match its SHA-256 .*damaged or changed"):
        verify(folder, read_manifest(folder))


def test_truncated_file_is_found(folder: Path) -> None:
    (folder / "model.onnx.data").write_bytes(FILES["model.onnx.data"][:100])
    with pytest.raises(BadBundle, match="has 100 bytes, the manifest says 256: truncated"):
        verify(folder, read_manifest(folder))


def test_missing_file_is_found(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadBundle, match=r"lacks tokenizer\.json; copy or export it again"):
        verify(folder, read_manifest(folder))


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json"])
def test_a_file_that_is_run_must_be_listed(folder: Path, name: str) -> None:
    rewrite(folder, lambda values: values["files"].pop(name))
    with pytest.raises(BadBundle, match=f"does not list {name}"):
        verify(folder, read_manifest(folder))


@pytest.mark.parametrize("absolute", [False, True], ids=["dots", "absolute"])
def test_a_path_outside_the_folder_is_refused(folder: Path, absolute: bool) -> None:
    secret = folder.parent / "secret"
    secret.write_bytes(b"key")
    name = str(secret) if absolute else "../secret"
    entry = {"bytes": 3, "sha256": "00"}
    rewrite(folder, lambda values: values["files"].update({name: entry}))
    with pytest.raises(BadBundle, match="lies outside the bundle; do not use this bundle"):
        verify(folder, read_manifest(folder))


def test_a_link_out_of_the_folder_is_refused(folder: Path) -> None:
    outside = folder.parent / "outside.onnx"
    (folder / "model.onnx").rename(outside)
    (folder / "model.onnx").symlink_to(outside)
    with pytest.raises(BadBundle, match=r"'model\.onnx' lies outside the bundle.*cp -rL"):
        verify(folder, read_manifest(folder))


@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "generation_config.json", "special_tokens_map.json"]
)
@pytest.mark.parametrize("hashes", [True, False])
def test_a_file_that_readers_open_and_nobody_lists(folder: Path, name: str, hashes: bool) -> None:
    (folder / name).write_text("{}")
    with pytest.raises(BadBundle, match=f"contains {name}, which bundle.json does not list"):
        verify(folder, read_manifest(folder), hashes=hashes)


def test_other_files_are_nobody_s_business(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    manifest = read_manifest(folder)
    verify(folder, manifest)
    assert bundle_file(folder, manifest, "notes.txt") is None
    assert bundle_file(folder, manifest, "model.onnx") == folder / "model.onnx"


def _missing(path: Path) -> None:
    pass


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.mkdir()


def _link_out(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _circle(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [_missing, _pipe, _folder, _link_out, _circle])
@pytest.mark.parametrize("hashes", [True, False])
def test_a_listed_file_that_is_no_plain_file(
    folder: Path, make: Callable[[Path], None], hashes: bool
) -> None:
    path = folder / "model.onnx.data"
    path.unlink()
    make(path)
    with pytest.raises(BadBundle):
        verify(folder, read_manifest(folder), hashes=hashes)


def test_an_engine_must_be_listed(folder: Path) -> None:
    engine = CompiledEngine("engines/x.engine", "tensorrt", "10.3", (87,), "", 2, 1.0, "Orin")
    manifest = msgspec.structs.replace(read_manifest(folder), engines=(engine,))
    with pytest.raises(BadBundle, match=r"does not list engines/x\.engine"):
        verify(folder, manifest)
