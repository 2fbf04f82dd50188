"""Machines to examine: records, files and answers, in the place of real ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgelm.bundle import (
    CacheContract,
    CacheLayer,
    EngineRequirement,
    FileEntry,
    GraphContract,
    Limits,
    Lineage,
    Manifest,
    TensorContract,
)
from edgelm.bundle.roles import DIALECTS, ROLES
from edgelm.devices.checks.context import Context
from edgelm.devices.detection.machine import Cpu, DetectedGpu, Jetson, Machine
from edgelm.devices.detection.probes import Probes
from edgelm.quantize.precision import Int4
from edgelm.spec.decoder import DecoderSpec

SITE = "/site-packages"
FOLDER = f"{SITE}/onnxruntime"
# What the doctor's questions to Python are recognized by.
WHERE_IS_IT, WHICH_PROVIDERS, WHICH_TORCH = "find_spec", "get_available_providers", "get_arch_list"

PLAIN = Machine(
    system="Linux 6.8.0-generic x86_64",
    python="3.11.9",
    memory_bytes=16_000_000_000,
    available_bytes=12_000_000_000,
    cpu=Cpu("Ryzen 7", cores=8, usable=16, isa=("avx2", "fma", "avx512_vnni")),
)
RTX_4060 = DetectedGpu(
    "NVIDIA GeForce RTX 4060 Laptop GPU",
    sm=89,
    memory_bytes=8_585_740_288,
    memory_kind="dedicated",
    driver="580.95.05",
    cuda="13.0",
)
LAPTOP = msgspec.structs.replace(PLAIN, gpus=(RTX_4060,))
ORIN_NANO = Machine(
    system="Linux 5.15.148-tegra aarch64",
    python="3.11.9",
    memory_bytes=7_990_153_216,
    available_bytes=5_102_817_280,
    cpu=Cpu("Cortex-A78AE", cores=6, usable=6, isa=("asimdhp", "asimddp")),
    gpus=(
        DetectedGpu("Orin", sm=87, memory_bytes=7_990_153_216, memory_kind="shared", cuda="12.6"),
    ),
    jetson=Jetson(
        model="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        part="p3767-0005",
        soc="tegra234",
        l4t="36.4.3",
        jetpack="6.2",
        power_mode="MAXN_SUPER",
        power_mode_id=2,
    ),
)


def with_packages(machine: Machine, **versions: str) -> Machine:
    """The machine with packages; underscores in the names stand for hyphens."""
    packages = {name.replace("_", "-"): version for name, version in versions.items()}
    return msgspec.structs.replace(machine, packages=packages)


def with_jetson(machine: Machine, **changes: Any) -> Machine:
    """The machine with another state of its Jetson."""
    assert machine.jetson
    return msgspec.structs.replace(
        machine, jetson=msgspec.structs.replace(machine.jetson, **changes)
    )


def context(
    machine: Machine,
    root: Path,
    *,
    files: Mapping[str, str | bytes] | None = None,
    answers: Mapping[str, str | OSError] | None = None,
    versions: Mapping[str, str] | None = None,
    environment: dict[str, str] | None = None,
    threads: int = 64,
    manifest: Manifest | None = None,
) -> Context:
    """A context of recorded files and answers; a command answers if it holds the key."""
    for name, content in (files or {}).items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def run(command: Sequence[str]) -> str:
        for key, answer in (answers or {}).items():
            if key in " ".join(command):
                if isinstance(answer, OSError):
                    raise answer
                return answer
        raise FileNotFoundError(f"{command[0]}: not there")

    probes = Probes(
        root=root,
        run=run,
        version=(versions or {}).get,
        environment=environment or {},
        threads=lambda: threads,
    )
    return Context(machine, probes, manifest)


_ENGINES = {"ort": "onnxruntime", "standard": "tensorrt", "decomposed": "tensorrt"}


def manifest(
    dialect: str = "ort",
    target: str = "cpu",
    compute_capabilities: tuple[int, ...] = (),
    **changes: Any,
) -> Manifest:
    """A bundle of 900 MB of weights and an int8 cache of 12 kB a token, up to 32,768 tokens."""
    spec = DecoderSpec.from_hf(
        {
            "model_type": "llama",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 32,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "vocab_size": 49152,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
        }
    )
    inputs = {
        role: TensorContract(role, ROLES[role].dtype, ROLES[role].shape)
        for role in DIALECTS[dialect] | (set() if dialect == "ort" else {"cache_positions"})
    }
    layers = tuple(
        CacheLayer(f"pk.{layer}", f"pv.{layer}", f"k.{layer}", f"v.{layer}")
        for layer in range(spec.num_hidden_layers)
    )
    whole = Manifest(
        schema_version=1,
        edgelm_version="0.1.0",
        created="2026-01-01T00:00:00+00:00",
        target=target,
        spec=spec,
        precision={"decoder": Int4()},
        kv="int8",
        weight_bytes=900_000_000,
        limits=Limits(context=32768, prefill_chunk=128),
        gate=None,
        lineage=Lineage("org/model", "00"),
        graph=GraphContract(
            file="model.onnx",
            data="model.onnx.data",
            dialect=dialect,
            opsets={"": 24},
            inputs=inputs,
            outputs={"logits": TensorContract("logits", "float32", (1, "P", 49152))},
            cache=CacheContract("int8", 3, 64, layers),
        ),
        files={"model.onnx.data": FileEntry(900_000_000, "00")},
        engine=EngineRequirement(_ENGINES[dialect], "", compute_capabilities),
    )
    return msgspec.structs.replace(whole, **changes)
