"""What a target gives its graphs."""

from typing import Any

import pytest

from edgelm.devices.profile import load_profile
from edgelm.export.target import Target
from edgelm.planning import PlanRequest
from edgelm.quantize.precision import Bf16, Int4, Nvfp4
from tests.core.spec.test_decoder import spec_of

CUDA = "onnxruntime-cuda"


def target_of(
    name: str, engine: str | None = None, family: str = "llama", **options: Any
) -> Target:
    spec = spec_of(model_type=family, head_dim=16)
    request = PlanRequest(**{"precision": "int4"} | options, engine=engine)
    return Target.from_request(load_profile(name), spec, request)


@pytest.mark.parametrize(
    ("target", "engine", "family", "options", "activations", "candidates"),
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
    options: dict[str, Any],
    activations: str,
    candidates: str,
) -> None:
    made = target_of(target, engine, family, **options)
    assert (made.format.activations, made.candidate_format.kv) == (activations, candidates)


def test_what_the_cpu_has_kernels_for() -> None:
    assert target_of("laptop-rtx-4060", CUDA, kv="int8").runs_on_cpu([Int4()])
    assert not target_of("laptop-rtx-4060", CUDA, kv="fp8").runs_on_cpu([Int4()])
    assert not target_of("laptop-rtx-4060", CUDA, kv="bf16").runs_on_cpu([Int4()])
    assert not target_of("laptop-rtx-4060").runs_on_cpu([Int4(), Bf16()])
    assert not target_of("laptop-rtx-4060").runs_on_cpu([Nvfp4()])
