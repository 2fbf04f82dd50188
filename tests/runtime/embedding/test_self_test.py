"""The self-test of an embedding model."""

import shutil
from pathlib import Path

import msgspec

from edgelm.bundle import read_manifest, write_manifest
from edgelm.runtime.self_test import self_test


def test_the_same_vectors_pass(embedding_bundle: Path) -> None:
    result = self_test(embedding_bundle)
    assert result.passed
    assert result.compared
    assert "of 2 texts" in result.lines()[1]


def test_other_vectors_fail_and_none_are_not_compared(
    embedding_bundle: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(embedding_bundle, bundle)
    manifest = read_manifest(bundle)
    record = manifest.embedding
    assert record is not None
    turned = msgspec.structs.replace(record.sample[0], vector=record.sample[0].vector[::-1])
    for sample, passed, compared in (((turned,), False, True), ((), True, False)):
        changed = msgspec.structs.replace(record, sample=sample)
        write_manifest(bundle, msgspec.structs.replace(manifest, embedding=changed))
        result = self_test(bundle)
        assert (result.passed, result.compared) == (passed, compared)
