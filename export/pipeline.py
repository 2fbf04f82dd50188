"""From a checkpoint to a bundle: plan, calibrate, choose precisions, build, judge, write.

Everything grows in a hidden folder beside the output and is moved there at the end; an error, an
interrupt or a kill leaves what was there before.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from edgelm.bundle import MANIFEST, Manifest
from edgelm.checkpoint.source import open_checkpoint
from edgelm.devices.planner.plan import plan as make_plan
from edgelm.devices.profile import load_profile
from edgelm.export.bundle.compile_ahead import engine_need
from edgelm.export.bundle.replaceable import bundle_files
from edgelm.export.cache import check_work
from edgelm.export.disk import bundle_need, check_room, existing, full_disk_told, work_need
from edgelm.export.progress import Progress, Timed
from edgelm.export.quantize.weights import Weights
from edgelm.export.request import ExportRequest, max_bytes
from edgelm.export.source.files import SourceFiles
from edgelm.export.source.text import CALIBRATION, GATE
from edgelm.export.stages import Export
from edgelm.files.staging import check_replaceable, check_separate, staged_folder
from edgelm.planning import PlanRequest
from edgelm.quantize.precision import KvType

log = logging.getLogger(__name__)


def export_model(
    source: str | Path,
    output: str | Path,
    *,
    target: str = "cpu",
    precision: str = "auto",
    kv: KvType | None = None,
    context: int | None = None,
    group_size: int | None = None,
    symmetric: bool | None = None,
    exceptions: Mapping[str, str] | None = None,
    gate: Literal["on", "off"] = "on",
    calibration: str | Path = CALIBRATION,
    gate_text: str | Path = GATE,
    revision: str | None = None,
    engine: str | None = None,
    compute_capabilities: Sequence[int] = (),
    method: str = "auto",
    max_size: int | str | None = None,
    work: str | Path | None = None,
    progress: Progress = log.info,
) -> Manifest:
    """Export a model to a bundle that `edgelm.load` runs.

    Args:
        source: a Hugging Face folder, a hub id or a `.gguf` file.
        output: the folder to write; an older bundle there is replaced at the end.
        target: the device, a name of `edge-export --list-targets`.
        precision: `auto` (the smallest that passes the gate), or a name of
            `edgelm.quantize.precision.PRECISIONS` that the target has.
        kv: type of the key-value cache; by default int8 on a CPU (fp32 beside fp32 weights), else
            16 bits.
        context: most tokens in the cache; by default the device's, at most the model's.
        group_size: weights that share a scale.
        symmetric: no zero points if true.
        exceptions: group pattern to precision, e.g. `{"layers.0.*": "int8"}`.
        gate: `off` writes a bundle that misses the gate too, and says so in its manifest.
        calibration: text for cache scales and sensitivities, JSONL or plain.
        gate_text: text that the result is judged on, held apart from calibration.
        revision: commit, tag or branch for a hub id.
        engine: one of the target's engines; its first by default.
        compute_capabilities: times ten; the GPUs that an engine is compiled for ahead of time, by
            default the target's own.
        method: how 4- and 8-bit weights are rounded, a name of
            `edgelm.export.quantize.methods.METHODS`.
        max_size: bytes of weights, or a size such as `"98MB"`: with `auto` the best mixture within
            it, in place of the smallest that passes the gate.
        work: a folder that keeps what is found out on the way (calibration, sensitivities, rounded
            matrices, candidates), so that a killed export goes on, and the next one of this model,
            for whatever device, takes what fits it. Several models may share it.
        progress: called with one line at each stage.

    Raises:
        GateFailed: the result is too far from its source; nothing was written.
        DoesNotFit: not enough disk or memory.
        BadCheckpoint, BadInput, UnknownName: something given cannot be used.
    """
    request = ExportRequest(
        PlanRequest(precision, kv, context, group_size, symmetric, engine),
        exceptions or {},
        gate,
        Path(calibration),
        Path(gate_text),
        method,
        max_bytes(max_size) if isinstance(max_size, str) else max_size,
    )
    output = Path(output)
    check_replaceable(output, marker=MANIFEST, listing=bundle_files)
    check_separate(output, _inputs(request, Path(source)))
    checkpoint = open_checkpoint(source, revision=revision)
    check_separate(output, {f"source's {path.name}": path for path in checkpoint.weight_files})
    profile = load_profile(target)
    plan = make_plan(checkpoint.spec, profile, request.plan)
    need = engine_need(profile, plan.engine, compute_capabilities)
    request.check(Weights(checkpoint).groups())
    work = None if work is None else Path(work)
    room = bundle_need(plan)
    if work:
        check_work(work, output)
    else:
        room += work_need(checkpoint, request, lasting=False)
    check_room(existing(output.parent), room, "the bundle")
    source_files = SourceFiles(checkpoint)
    with (
        source_files.unchanged(),
        full_disk_told(output, room, work=work),
        staged_folder(output, marker=MANIFEST, listing=bundle_files) as folder,
    ):
        return Export(source_files, plan, need, request, folder, Timed(progress), work).run()


def _inputs(request: ExportRequest, source: Path) -> dict[str, Path]:
    """What is read, by what it is."""
    texts = {"calibration text": request.calibration, "gate text": request.gate_text}
    return {"source": source, **texts}
