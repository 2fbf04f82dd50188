"""The types of a plan's graphs."""

from typing import Any

import pytest

from edgelm.devices.planner.plan import plan
from edgelm.devices.profile import load_profile
from edgelm.export.bundle.compile_ahead import engine_need
from edgelm.export.graph.variants import PlannedGraphs
from edgelm.planning import PlanRequest
from edgelm.quantize.precision import Bf16, Int4, Nvfp4
from tests.core.spec.test_decoder import spec_of

CUDA = "onnxruntime-cuda"


def graphs(target: str, engine: str | None = None, family: str = "llama", **asked: Any) -> Any:
    spec = spec_of(model_type=family, head_dim=16)
    device = load_profile(target)
    made = plan(spec, device, PlanRequest(**{"precision": "int4"} | asked, engine=engine))
    return PlannedGraphs(made, engine_need(device, made.engine, ()), spec)


@pytest.mark.parametrize(
    ("target", "engine", "family", "asked", "activations", "candidates"),
    [
        ("cpu", None, "llama", {}, "fp32", "int8"),
        ("cpu", None, "llama", {"kv": "fp32"}, "fp32", "fp32"),
        ("laptop-rtx-4060", None, "llama", {}, "fp16", "fp32"),
        ("laptop-rtx-4060", None, "gemma2", {}, "bf16", "fp32"),
        ("laptop-rtx-4060", CUDA, "llama", {"kv": "int8"}, "fp16", "int8"),
        ("laptop-rtx-4060", CUDA, "llama", {"kv": "fp8"}, "fp16", "fp8"),
        ("laptop-rtx-4060", CUDA, "llama", {"kv": "int8", "precision": "bf16"}, "bf16", "int8"),
        ("laptop-rtx-4060", CUDA, "gemma2", {"kv": "int8"}, "bf16", "int8"),
        ("jetson-orin", CUDA, "gemma2", {"kv": "int8"}, "fp16", "int8"),  # it has no bf16
    ],
)
def test_the_stream_and_the_candidates_cache(
    target: str,
    engine: str | None,
    family: str,
    asked: dict[str, Any],
    activations: str,
    candidates: str,
) -> None:
    made = graphs(target, engine, family, **asked)
    assert (made.activations, made.candidate_kv) == (activations, candidates)


def test_what_the_cpu_has_no_kernels_for() -> None:
    assert not graphs("laptop-rtx-4060", CUDA, kv="int8").needs_widening([Int4()])
    assert graphs("laptop-rtx-4060", CUDA, kv="fp8").needs_widening([Int4()])
    assert graphs("laptop-rtx-4060", CUDA, kv="bf16").needs_widening([Int4()])
    assert graphs("laptop-rtx-4060").needs_widening([Int4(), Bf16()])
    assert graphs("laptop-rtx-4060").needs_widening([Nvfp4()])
