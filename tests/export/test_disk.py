"""Disk that intermediate results need, counted before work starts."""

import pytest

from edgelm.export.disk import work_need
from edgelm.export.request import ExportRequest
from edgelm.planning import PlanRequest
from tests.conftest import TinyFactory


def needs(tiny: TinyFactory, precision: str, method: str, *, durable: bool = False) -> int:
    request = ExportRequest(PlanRequest(precision), method=method)
    return work_need(tiny("llama").checkpoint, request, durable=durable)


@pytest.mark.parametrize("precision", ["int4", "nvfp4", "fp8"])
def test_hessians_of_what_is_compensated(tiny: TinyFactory, precision: str) -> None:
    spec = tiny("llama").checkpoint.spec
    layer = sum(inputs**2 for _, inputs in spec.linear_shapes) // spec.num_hidden_layers
    moments = 4 * (spec.num_hidden_layers * layer + spec.hidden_size**2)  # and the head's
    assert needs(tiny, precision, "auto") == needs(tiny, precision, "gptq") == moments
    assert needs(tiny, precision, "rtn") == needs(tiny, precision, "awq") == 0
    assert needs(tiny, precision, "auto", durable=True) == moments + spec.parameters


def test_int8_needs_them_where_gptq_is_requested(tiny: TinyFactory) -> None:
    assert needs(tiny, "int8", "auto") == 0
    assert needs(tiny, "int8", "gptq") == needs(tiny, "int4", "gptq")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_nothing_for_what_is_not_quantized(tiny: TinyFactory, precision: str) -> None:
    assert needs(tiny, precision, "auto", durable=True) == 0
