"""The size of a graph's data file is known before anything is quantized."""

from pathlib import Path
from typing import Any

import pytest

from edgelm.export.graph.write import GraphFormat, data_bytes, write_graph
from edgelm.export.quantize.calibrate import calibrate
from edgelm.export.quantize.kv_scales import KvScaling
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.weights import Weights
from edgelm.export.source.reference import Reference
from edgelm.quantize.precision import Fp16, Int4, Int8, WeightPrecision
from tests.conftest import TinyFactory
from tests.export.quantize.test_methods import TOKENS

CHANNEL = Int8(group_size=0)
ORT: tuple[WeightPrecision, ...] = (Int4(32), Int8(32), Int4(64), Fp16(), Int4(16, symmetric=True))
QDQ: tuple[WeightPrecision, ...] = (Int4(32, symmetric=True), CHANNEL, Fp16())


@pytest.mark.parametrize("family", ["llama", "llama-untied", "qwen3", "gemma2", "olmo2", "phi3"])
@pytest.mark.parametrize(
    ("form", "precisions"),
    [
        (GraphFormat("ort", "int8", "fp32", 64), ORT),
        (GraphFormat("ort", "fp16", "fp16", 64), ORT),
        (GraphFormat("standard", "fp16", "fp16", 64), QDQ),
        (GraphFormat("decomposed", "bf16", "bf16", 64), QDQ),
        (GraphFormat("decomposed", "fp16", "fp16", 64, opset=17), (CHANNEL, Fp16())),
    ],
    ids=["ort-int8", "ort-fp16", "standard", "decomposed", "opset-17"],
)
def test_counted_bytes_are_those_written(
    calm: TinyFactory, tmp_path: Path, family: str, form: GraphFormat, precisions: Any
) -> None:
    checkpoint = calm(family).checkpoint
    scaling = None
    if form.kv == "int8":
        observed = calibrate(Reference(checkpoint), TOKENS)
        scaling = KvScaling.from_calibration(checkpoint.spec, observed.kv_absmax)
    weights = Weights(checkpoint, scaling)
    quantizer = Quantizer(weights, positive_scales=form.dialect != "ort")
    groups = weights.groups()
    assignment = {
        group: precisions[number % len(precisions)] for number, group in enumerate(groups)
    }
    written = write_graph(tmp_path, quantizer, assignment, form)
    size = (tmp_path / written.contract.data).stat().st_size
    assert data_bytes(quantizer, assignment, form) == size
