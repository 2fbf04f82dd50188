"""From a checkpoint to a bundle: plan, calibrate, choose precisions, write, measure, compile.

Everything is written to a hidden folder next to the output and moved there at the end; an error, an
interrupt or a kill leaves what was there before.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from edgelm.bundle import MANIFEST, Manifest
from edgelm.bundle.records.gate_sample import write_sample
from edgelm.bundle.records.gates import SourceCheck, enforce
from edgelm.bundle.records.self_test import write_self_test
from edgelm.checkpoint.adapter.lora import read_lora
from edgelm.checkpoint.adapter.merge import merged
from edgelm.checkpoint.drafts.assistant import open_assistant
from edgelm.checkpoint.drafts.draft_head import draft_head as open_draft_head
from edgelm.checkpoint.source import Checkpoint, open_checkpoint
from edgelm.checkpoint.text_part import DRAFT_HEAD
from edgelm.cli import parse_bytes
from edgelm.devices.profile import Profile
from edgelm.devices.this_machine import target_profile
from edgelm.export.adapters.gate import check_adapters
from edgelm.export.adapters.options import check_drafts
from edgelm.export.adapters.switchable import check_engine, read_switchable
from edgelm.export.adapters.write import write_adapter
from edgelm.export.bundle.assistant import write_assistant
from edgelm.export.bundle.compile_ahead import compile_ahead
from edgelm.export.bundle.draft import draft_manifest
from edgelm.export.bundle.draft_head import write_draft_head
from edgelm.export.bundle.replaceable import bundle_files
from edgelm.export.bundle.text.tokenizer_files import write_tokenizer_files
from edgelm.export.bundle.write import write_bundle
from edgelm.export.cached_steps import evaluator_for
from edgelm.export.calibration import calibrated, passage_for
from edgelm.export.choose import (
    deliver_auto,
    deliver_requested,
    keeping_outliers,
    requested_assignment,
    requested_limits,
)
from edgelm.export.delivery import Delivery, Writer
from edgelm.export.disk import (
    bundle_need,
    check_free_space,
    disk_full_as_error,
    nearest_existing,
    work_need,
)
from edgelm.export.embedding.pipeline import export_embedding
from edgelm.export.gate.measure import Evaluator
from edgelm.export.precision.legalize import Assignment
from edgelm.export.precision.source_plan import with_source
from edgelm.export.progress import Progress, Timed
from edgelm.export.quantize.weights import Weights
from edgelm.export.request import ExportRequest, GateMode
from edgelm.export.source.files import SourceFiles
from edgelm.export.source.reference import Reference
from edgelm.export.source.text import CALIBRATION, GATE, SEQUENCES, Passage
from edgelm.export.source_check.check import source_check
from edgelm.export.target import Target
from edgelm.export.work.folder import check_work
from edgelm.export.workspace import Workspace, open_workspace
from edgelm.files.staging import check_replaceable, check_separate, staged_folder
from edgelm.planning import SOURCE, PlanRequest
from edgelm.quantize.precision import EIGHT_BIT_KV, KvType, Unquantized

log = logging.getLogger(__name__)


def export_model(
    source: str | Path,
    output: str | Path,
    *,
    target: str = "cpu",
    precision: str | None = None,
    kv: KvType | None = None,
    context: int | None = None,
    group_size: int | None = None,
    symmetric: bool | None = None,
    exceptions: Mapping[str, str] | None = None,
    gate: GateMode = "on",
    calibration: str | Path = CALIBRATION,
    gate_text: str | Path = GATE,
    revision: str | None = None,
    engine: str | None = None,
    compute_capabilities: Sequence[int] = (),
    method: str = "auto",
    max_size: int | str | None = None,
    work: str | Path | None = None,
    segments: int | None = None,
    adapter: str | Path | None = None,
    switchable_adapters: Mapping[str, str | Path] | None = None,
    draft_head: bool = False,
    assistant: str | Path | None = None,
    progress: Progress = log.info,
) -> Manifest:
    """Export a model to a bundle that `edgelm.load` runs.

    Args:
        source: a Hugging Face folder, a hub id or a `.gguf` file.
        output: the folder to write; an older bundle there is replaced at the end.
        target: the device, a name of `edge-export --list-targets`.
        precision: `auto` (the smallest that passes the gate), `source` (the levels of a quantized
            checkpoint, where the target's kernels can hold them), or a name of
            `edgelm.quantize.precision.PRECISIONS` that the target has. By default `source` for a
            quantized checkpoint, else `auto`.
        kv: type of the key-value cache; by default int8 on a CPU (fp32 with fp32 weights), else
            16 bits.
        context: maximum tokens in the cache; by default the device's, at most the model's.
        group_size: weights that share a scale.
        symmetric: no zero points if true.
        exceptions: group pattern to precision, e.g. `{"layers.0.*": "int8"}`.
        gate: `off` also writes a bundle that fails the gate, and says so in its manifest. `none`
            measures nothing, not even whether the source is read as transformers reads it.
        calibration: text for cache scales and sensitivities, JSONL or plain.
        gate_text: text that the result is measured on, different from the calibration text.
        revision: commit, tag or branch for a hub id.
        engine: one of the target's engines; its first by default.
        compute_capabilities: times ten; the GPUs that an engine is compiled for ahead of time, by
            default the target's own.
        method: how 4- and 8-bit weights are quantized, a name of
            `edgelm.export.quantize.methods.METHODS`.
        max_size: bytes of weights, or a size such as `"98MB"`: `auto` then takes the best mixture
            of at most that size, instead of the smallest one that passes the gate.
        work: a folder for intermediate results (calibration, sensitivities, quantized matrices,
            candidates): an interrupted export resumes from them, and later exports of this model,
            for any device, reuse what applies. Several models may share it.
        segments: into how many segments the graph is cut, which are compiled one by one; by
            default the fewest with which the engine can be compiled in the device's memory.
        adapter: the folder of a PEFT LoRA, merged into the weights before anything else.
        switchable_adapters: folders of PEFT LoRAs by name; they are stored separately from the
            weights, and each request chooses one, or none. For ONNX Runtime on a CPU.
        draft_head: also export the head with which the checkpoint drafts tokens (multi-token
            prediction, as Qwen3.5 has it), into `draft/`. For ONNX Runtime on a CPU.
        assistant: a folder or hub id of the assistant of a Gemma 4, which drafts tokens from the
            model's key-value cache; it is exported into `draft/`. For ONNX Runtime on a CPU.
        progress: called with one line at each stage.

    Raises:
        GateFailed: the result is too far from its source; nothing was written.
        DoesNotFit: not enough disk or memory.
        BadCheckpoint, BadInput, UnknownName: something given cannot be used.
    """
    request = ExportRequest(
        PlanRequest(
            "auto" if precision is None else precision,
            kv,
            context,
            group_size,
            symmetric,
            engine,
            draft_head=draft_head,
        ),
        exceptions or {},
        gate,
        Path(calibration),
        Path(gate_text),
        method,
        parse_bytes(max_size) if isinstance(max_size, str) else max_size,
        segments,
    )
    output, work = Path(output), None if work is None else Path(work)
    check_replaceable(output, marker=MANIFEST, listing=bundle_files)
    check_separate(output, _inputs(request, Path(source)))
    checkpoint = open_checkpoint(source, revision=revision)
    if adapter is not None:
        checkpoint = merged(checkpoint, read_lora(Path(adapter)))
        progress(f"merging the adapter {Path(adapter).name} into {checkpoint.name}")
    check_drafts(switchable_adapters or (), draft_head=draft_head, assistant=assistant)
    if draft_head:
        open_draft_head(checkpoint)  # before anything is computed
    if assistant is not None:
        opened = open_assistant(assistant, checkpoint.spec)
        plan = msgspec.structs.replace(request.plan, assistant=opened.spec)
        request = replace(request, plan=plan, assistant=opened)
    if left_out := [one for one in checkpoint.left_out if not draft_head or one != DRAFT_HEAD]:
        progress(f"only the text decoder is exported; left out: {', '.join(left_out)}")
        if DRAFT_HEAD in left_out:
            progress(f"{DRAFT_HEAD} drafts tokens: --draft-head exports it, too")
    read = checkpoint.weight_files + (request.assistant.weight_files if request.assistant else ())
    check_separate(output, {f"source's {path.name}": path for path in read})
    device = target_profile(target)
    request = _for_source(request, checkpoint, device, requested=precision)
    made_for = Target.from_request(device, checkpoint.spec, request.plan, compute_capabilities)
    if switchable_adapters:
        check_engine(made_for.engine.name)
        folders = {name: Path(one) for name, one in switchable_adapters.items()}
        request = replace(request, adapters=read_switchable(checkpoint, folders))
    request.check(Weights(checkpoint).groups())
    made_for.segments(request.segments)
    space = _check_disk(checkpoint, request, made_for, output, work)
    files = SourceFiles(checkpoint)
    with (
        files.unchanged(),
        disk_full_as_error(output, space, work=work),
        staged_folder(output, marker=MANIFEST, listing=bundle_files) as folder,
    ):
        plain = _export if request.gate != "none" else _export_unmeasured
        export = plain if checkpoint.embedding is None else export_embedding
        return export(files, made_for, request, folder, work, Timed(progress))


def _export(
    source: SourceFiles,
    target: Target,
    request: ExportRequest,
    folder: Path,
    work: Path | None,
    progress: Timed,
) -> Manifest:
    """The stages of an export into an empty folder."""
    _announce(source.checkpoint, target, progress)
    write_tokenizer_files(source.checkpoint, folder)
    context = target.plan.context
    reference = Reference(source.checkpoint, context=context)
    text = passage_for(request.gate_text, folder, target, SEQUENCES)
    with open_workspace(folder, work, source, reference, context, progress) as workspace:
        check = source_check(reference, text, context, workspace, enforced=request.gate == "on")
        delivery, gate, calibration = _deliver(workspace, request, target, reference, text)
        _enforce(delivery)
        written = [write_adapter(folder, one, delivery.weights) for one in request.adapters]
        adapters = check_adapters(folder, delivery, written, request.adapters, gate, progress)
        draft = draft_manifest(source.checkpoint, delivery.target, delivery.graph)
        _write_draft(
            folder, source, draft, delivery.assignment, delivery.weights, request, progress
        )
        engines = compile_ahead(folder, draft, progress, work=workspace.durable_folder)
    write_sample(folder, gate.sample())
    if delivery.self_test is not None:
        write_self_test(folder, delivery.self_test)
    draft = msgspec.structs.replace(draft, engines=engines, adapters=adapters)
    return _finish(folder, source, delivery, check, draft, calibration)


def _deliver(
    workspace: Workspace,
    request: ExportRequest,
    target: Target,
    reference: Reference,
    text: Passage,
) -> tuple[Delivery, Evaluator, Passage | None]:
    """Calibrate, choose, write and measure; the graph is in the bundle's folder then.

    Returns what was written, its evaluator on the gate's text, and the calibration text.
    """
    writer, requested, calibration = _prepare(workspace, request, target, reference)
    gate = evaluator_for(reference, text, "the gate text", workspace.cache, workspace.progress)
    if requested or calibration is None:
        return deliver_requested(writer, requested, gate), gate, calibration
    return deliver_auto(writer, calibration, gate), gate, calibration


def _prepare(
    workspace: Workspace, request: ExportRequest, target: Target, reference: Reference
) -> tuple[Writer, Assignment, Passage | None]:
    """A writer of graphs, the requested assignment, and the calibration text."""
    requested = requested_assignment(request, target, reference.checkpoint)
    quantizer, calibration = calibrated(workspace, request, target, reference, requested)
    limits = requested_limits(request, target, requested)
    return Writer(workspace, request, target, quantizer, limits), requested, calibration


def _export_unmeasured(
    source: SourceFiles,
    target: Target,
    request: ExportRequest,
    folder: Path,
    work: Path | None,
    progress: Timed,
) -> Manifest:
    """The stages of an export that compares the graph with nothing, into an empty folder."""
    _announce(source.checkpoint, target, progress)
    write_tokenizer_files(source.checkpoint, folder)
    context = target.plan.context
    reference = Reference(source.checkpoint, context=context)
    with open_workspace(folder, work, source, reference, context, progress) as workspace:
        writer, requested, calibration = _prepare(workspace, request, target, reference)
        assignment = keeping_outliers(writer, requested)
        manifest = draft_manifest(source.checkpoint, target, writer.write(assignment, folder))
        weights = writer.quantizer.weights
        _write_draft(folder, source, manifest, assignment, weights, request, progress)
        engines = compile_ahead(folder, manifest, progress, work=workspace.durable_folder)
    manifest = msgspec.structs.replace(manifest, engines=engines, precision=assignment)
    used = calibration.sha256 if calibration else None
    return write_bundle(folder, source, manifest, calibration=used)


def _write_draft(
    folder: Path,
    source: SourceFiles,
    manifest: Manifest,
    assignment: Assignment,
    weights: Weights,
    request: ExportRequest,
    progress: Progress,
) -> None:
    """Write the draft head or the assistant, if one is requested."""
    if request.plan.draft_head:
        write_draft_head(folder, source, manifest, assignment, progress)
    if request.assistant is not None:
        scaling = weights.kv_scaling  # also folded in where a wider cache took the place of int8
        write_assistant(folder, request.assistant, manifest, assignment, scaling, progress)


def _finish(
    folder: Path,
    source: SourceFiles,
    delivery: Delivery,
    check: SourceCheck | None,
    draft: Manifest,
    calibration: Passage | None,
) -> Manifest:
    """Write the manifest."""
    manifest = msgspec.structs.replace(
        draft,
        precision=delivery.assignment,
        gate=delivery.gate,
        check=delivery.check,
        source=check,
    )
    used = calibration.sha256 if calibration else None
    return write_bundle(folder, source, manifest, calibration=used)


def _for_source(
    request: ExportRequest, checkpoint: Checkpoint, device: Profile, *, requested: str | None
) -> ExportRequest:
    """The request with its default precision, and with what a quantized source means for it."""
    plan = request.plan
    if requested is None and request.max_size is None:
        plan = msgspec.structs.replace(plan, precision=checkpoint.default_precision)
    if plan.precision == SOURCE:
        plan = with_source(plan, checkpoint, device)
    return replace(request, plan=plan)


def _announce(checkpoint: Checkpoint, target: Target, progress: Progress) -> None:
    plan = target.plan
    progress(
        f"exporting {checkpoint.name}: {checkpoint.spec.parameters / 1e6:,.1f} M parameters, "
        f"{plan.precision}, {plan.kv} cache, context {plan.context:,}"
    )
    for note in plan.notes:
        progress(note)


def _check_disk(
    checkpoint: Checkpoint,
    request: ExportRequest,
    target: Target,
    output: Path,
    work: Path | None,
) -> int:
    """Bytes that the output's disk needs; raises DoesNotFit where it has fewer."""
    need = bundle_need(target.plan)
    if work:
        check_work(work, output)
    else:
        need += work_need(checkpoint, request, durable=False)
    check_free_space(nearest_existing(output.parent), need, "the bundle")
    return need


def _enforce(delivery: Delivery) -> None:
    """Raise GateFailed where the gate is enforced and failed."""
    gate, target = delivery.gate, delivery.target
    if not gate.enforced:
        return
    unquantized = all(isinstance(one, Unquantized) for one in delivery.assignment.values())
    only_cache = unquantized and target.plan.kv in EIGHT_BIT_KV
    wider = target.engine.kv[0] if only_cache else None
    enforce(gate, wider_cache=wider)


def _inputs(request: ExportRequest, source: Path) -> dict[str, Path]:
    """What is read, by what it is."""
    texts = {"calibration text": request.calibration, "gate text": request.gate_text}
    return {"source": source, **texts}
