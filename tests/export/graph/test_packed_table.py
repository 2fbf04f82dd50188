"""Tables in words of 32 bits give the rows that dequantizing gives, in four bits and in eight."""

from pathlib import Path

import numpy as np
import pytest
import torch

from edgelm.export.graph.packed_table import fits_words, packed_words
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.weights import Weights
from edgelm.quantize.precision import Int4, Int8
from edgelm.quantize.rtn import quantize
from edgelm.spec.groups import PER_LAYER_EMBEDDING
from tests.conftest import TinyFactory
from tests.export.graphs import DialectName, build_session

TOKENS = np.random.default_rng(0).integers(3, 128, 24)


@pytest.mark.parametrize("precision", [Int4(32, symmetric=True), Int8(64)], ids=str)
def test_words_hold_the_levels(precision: Int4 | Int8) -> None:
    matrix = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    table = quantize(matrix, precision)
    words = packed_words(table, 64).astype(np.int64) & 0xFFFFFFFF
    count = 32 // table.bits
    levels = np.stack([(words >> (table.bits * at)) % (1 << table.bits) for at in range(count)], -1)
    assert np.array_equal(levels.reshape(8, 64), table.levels.flatten(1).numpy())


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def test_rows_that_are_not_whole_words() -> None:
    assert fits_words(24, 4)
    assert not fits_words(28, 4)
    assert fits_words(28, 8)


@pytest.mark.parametrize("dialect", ["standard", "decomposed"])
@pytest.mark.parametrize("precision", [Int4(32, symmetric=True), Int8(group_size=0)], ids=str)
def test_the_graph_is_that_of_the_dequantized_table(
    calm: TinyFactory, tmp_path: Path, dialect: DialectName, precision: Int4 | Int8
) -> None:
    source = calm("gemma4").checkpoint
    logits = []
    for dequantized in (False, True):
        folder = tmp_path / str(dequantized)
        with build_session(
            source, folder, precision, dialect=dialect, dequantized=dequantized
        ) as session:
            logits.append(session.advance(TOKENS, logits=len(TOKENS)).copy())
    packed, wide = (
        sum(f.stat().st_size for f in (tmp_path / n).iterdir()) for n in ("False", "True")
    )
    assert packed < 0.6 * wide
    assert np.abs(logits[0] - logits[1]).max() <= 1e-4 * np.abs(logits[1]).max()


@pytest.mark.parametrize("precision", [Int4(32), Int8(32)], ids=str)
def test_a_table_in_parts_is_quantized_as_a_whole(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, precision: Int4 | Int8
) -> None:
    weights = Weights(tiny("gemma4").checkpoint)
    matrix = weights.matrix(PER_LAYER_EMBEDDING)
    monkeypatch.setattr("edgelm.export.quantize.quantizer._PART", 5 * matrix.shape[1])
    parts = Quantizer(weights).quantize(PER_LAYER_EMBEDDING, lambda: matrix, precision)
    whole = quantize(matrix, precision)
    assert torch.equal(parts.dequantize(matrix.shape[1]), whole.dequantize(matrix.shape[1]))
