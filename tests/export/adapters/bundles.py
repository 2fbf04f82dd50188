"""Graphs and adapters as an export writes them, and adapters as peft does."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import peft
import torch

from edgelm.bundle import Manifest, hash_files
from edgelm.checkpoint.source import Checkpoint
from edgelm.export.adapters.switchable import read_switchable
from edgelm.export.adapters.write import write_adapter
from edgelm.export.graph.write import GraphFormat, write_graph
from edgelm.export.quantize.kv_scales import KvScaling
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.weights import Weights
from edgelm.quantize.precision import PRECISIONS, KvType, WeightPrecision
from edgelm.runtime.engines.adapters import Adapters
from edgelm.runtime.engines.engine_session import EngineSession
from tests.checkpoints.models import tiny_model
from tests.export.graphs import CHUNK, CONTEXT, bare_manifest, cpu_session


@dataclass(frozen=True)
class Adapted:
    """A session over a graph with inputs for adapters, and these."""

    session: EngineSession
    adapters: Adapters
    manifest: Manifest


def adapted_session(
    checkpoint: Checkpoint,
    folder: Path,
    adapters: Mapping[str, Path],
    precision: WeightPrecision = PRECISIONS["fp32"],
    *,
    kv: KvType = "fp32",
    scaling: KvScaling | None = None,
) -> Adapted:
    """Write a graph and its adapters, and open them."""
    weights = Weights(checkpoint, scaling)
    found = read_switchable(checkpoint, adapters)
    groups = tuple(dict.fromkeys(group for one in found for group in one.groups))
    form = GraphFormat("ort", kv, "fp32", CONTEXT, adapted=groups)
    folder.mkdir(exist_ok=True)
    quantizer = Quantizer(weights, positive_scales=False)
    graph = write_graph(
        folder, quantizer, dict.fromkeys(weights.groups(), precision), form
    ).contract
    records = tuple(write_adapter(folder, one, weights) for one in found)
    manifest = bare_manifest(checkpoint.spec, graph, adapters=records)
    manifest = msgspec.structs.replace(manifest, files=hash_files(folder))
    session = cpu_session(folder, graph, capacity=CONTEXT, chunk=CHUNK, threads=1)
    return Adapted(session, Adapters(folder, manifest), manifest)


def peft_adapter(
    folder: Path, model: str, *, seed: int = 0, size: float = 0.05, **given: Any
) -> Any:
    """Save a random adapter of a tiny model with peft; return the model that has it."""
    options: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear"}
    options |= given
    config = peft.LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **options)
    torch.manual_seed(seed)
    base: Any = tiny_model(model)
    adapted = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn(parameter.shape) * size)
    adapted.save_pretrained(str(folder))
    return adapted
