"""The gate's figure is measured again on the delivered bundle."""

import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from bench.studies.quantization.gate_promise import measure_promise, table
from edgelm.bundle import read_manifest, write_manifest
from edgelm.errors import BadInput


def test_the_gates_sequences_give_the_gates_figure_again(int8_bundle: Path, source: Path) -> None:
    found = measure_promise(int8_bundle, str(source))
    assert found.recorded.kl > 1e-4
    # The gate prefills in other chunks, whose tokens see each other's keys before they are rounded.
    assert found.same.mean == pytest.approx(found.recorded.kl, rel=0.05)
    assert len(found.same.sums) == 8
    assert len(found.other.sums) == 7
    # Other sequences, but of the same text.
    assert found.other.mean != found.same.mean
    assert abs(found.deviation) < 5
    assert "| recorded by the gate |" in table(found)


def test_a_bundle_that_was_gated_on_another_text_is_refused(
    int8_bundle: Path, source: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(int8_bundle)
    assert manifest.gate is not None
    copy = shutil.copytree(int8_bundle, tmp_path / "copy")
    write_manifest(copy, replace(manifest, gate=replace(manifest.gate, text_sha256="0" * 64)))
    with pytest.raises(BadInput, match="not gated on edgelm's own text"):
        measure_promise(copy, str(source))
