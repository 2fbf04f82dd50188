"""From a checkpoint to a bundle: plan, calibrate, choose precisions, build, judge, write.

Everything grows in a hidden folder beside the output and is moved there at the end; an error, an
interrupt or a kill leaves what was there before.
"""

import errno
import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

import edgelm
from edgelm.bundle import (
    MANIFEST,
    SCHEMA_VERSION,
    GraphContract,
    Limits,
    Lineage,
    Manifest,
    hash_files,
    write_manifest,
)
from edgelm.checkpoint import Checkpoint, open_checkpoint
from edgelm.command import format_bytes
from edgelm.devices.plan import plan as make_plan
from edgelm.devices.profile import load_profile
from edgelm.errors import DoesNotFit, UnknownName
from edgelm.export.auto import Assignment, Ladder, margin, smallest_passing
from edgelm.export.calibrate import calibrate
from edgelm.export.card import write_card
from edgelm.export.decoder import build_decoder
from edgelm.export.gate import Judge
from edgelm.export.kv_folding import KvFolding
from edgelm.export.ort_dialect import OrtDialect
from edgelm.export.reference import Reference
from edgelm.export.request import ExportRequest
from edgelm.export.sensitivity import measure_sensitivity
from edgelm.export.text import CALIBRATION, GATE, Passage, read_passage
from edgelm.export.tokenizer_files import write_tokenizer_files
from edgelm.export.weights import Weights
from edgelm.gates import Figures, GateResult, enforce, gate_class, passes
from edgelm.planning import Plan, Request
from edgelm.precision import Fp32, KvType, WeightPrecision, describe
from edgelm.runtime.ort import OrtSession
from edgelm.staging import check_replaceable, staged_folder

log = logging.getLogger(__name__)

Progress = Callable[[str], None]
_TUNING = 4  # sequences of the calibration text on which candidates are compared
_ENGINE = "onnxruntime"
_RANKING = (4, 64)  # sequences and tokens that rank the groups: 256 tokens order them stably


def export(
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
    progress: Progress = log.info,
) -> Manifest:
    """Export a model to a bundle that `edgelm.load` runs.

    Args:
        source: a Hugging Face folder, a hub id or a `.gguf` file.
        output: the folder to write; an older bundle there is replaced at the end.
        target: the device, a name of `edge-export --list-targets`.
        precision: `auto` (the smallest that passes the gate), `fp32`, `int8` or `int4`.
        kv: type of the key-value cache; int8 by default, fp32 beside fp32 weights.
        context: most tokens in the cache; by default the device's, at most the model's.
        group_size: weights that share a scale.
        symmetric: no zero points if true.
        exceptions: group pattern to precision, e.g. `{"layers.0.*": "int8"}`.
        gate: `off` writes a bundle that misses the gate too, and says so in its manifest.
        calibration: text for cache scales and sensitivities, JSONL or plain.
        gate_text: text that the result is judged on, held apart from calibration.
        revision: commit, tag or branch for a hub id.
        progress: called with one line at each stage.

    Raises:
        GateFailed: the result is too far from its source; nothing was written.
        DoesNotFit: not enough disk or memory.
        BadCheckpoint, BadInput, UnknownName: something given cannot be used.
    """
    request = ExportRequest(
        Request(precision, kv, context, group_size, symmetric),
        exceptions or {},
        gate,
        Path(calibration),
        Path(gate_text),
    )
    output = Path(output)
    checkpoint = open_checkpoint(source, revision=revision)
    plan = make_plan(checkpoint.spec, load_profile(target), request.plan)
    _check_engine(plan)
    request.check(Weights(checkpoint).groups())
    check_replaceable(output, marker=MANIFEST)
    _check_disk(output, plan)
    with staged_folder(output, marker=MANIFEST) as folder:
        try:
            return _Export(checkpoint, plan, request, folder, _Timed(progress)).run()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise DoesNotFit(
                    f"the disk is full: cannot write {error.filename or folder} "
                    f"({error.strerror}); free about {format_bytes(_disk_need(plan))} at "
                    f"{output.parent}; nothing was left behind"
                ) from None
            raise


def _check_engine(plan: Plan) -> None:
    if plan.engine != _ENGINE:
        raise UnknownName(
            f"bundles for {plan.engine} are not written yet, which {plan.target} needs; expected "
            f"a target with {_ENGINE}, such as cpu. Plans of every target work: "
            f"--target {plan.target} --plan, or edge-devices plan"
        )


class _Export:
    """One export on its way; each method is a stage."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        request: ExportRequest,
        folder: Path,
        progress: "_Timed",
    ) -> None:
        self.checkpoint = checkpoint
        self.weights = Weights(checkpoint)
        self.plan = plan
        self.request = request
        self.folder = folder
        self.progress = progress

    def run(self) -> Manifest:
        self.progress(
            f"exporting {self.checkpoint.name}: {self.checkpoint.spec.parameters / 1e6:,.1f} M "
            f"parameters, {self.plan.precision}, {self.plan.kv} cache, context "
            f"{self.plan.context:,}"
        )
        write_tokenizer_files(self.checkpoint, self.folder)
        self.reference = Reference(self.checkpoint, context=self.plan.context)
        calibration = self.passage(self.request.calibration)
        held_apart = self.passage(self.request.gate_text)
        if self.plan.precision != "fp32" or self.plan.kv != "fp32":
            self.progress("calibrating: running the source on the calibration text")
            seen = calibrate(self.reference, calibration.tokens)
            folding = KvFolding.of(self.checkpoint.spec, seen.largest)
            self.weights = Weights(
                self.checkpoint, folding if self.plan.kv == "int8" else None, seen.energy
            )
        self.progress("running the source on the gate text")
        judge = Judge.of(self.reference, held_apart)
        if self.request.plan.precision == "auto":
            assignment, figures = self.choose(calibration, judge)
        else:
            assignment = self.request.assignment(self.weights.groups())
            self.progress("quantizing and writing the graph")
            figures = self.measure(assignment, judge)
        result = self.judge(assignment, figures, held_apart)
        return self.finish(assignment, result)

    def passage(self, path: Path) -> Passage:
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        spec = self.checkpoint.spec
        return read_passage(path, tokenizer, vocab_size=spec.vocab_size, context=self.plan.context)

    def choose(self, calibration: Passage, judge: Judge) -> tuple[Assignment, Figures]:
        """The smallest assignment that passes on the calibration text, and then on the gate's."""
        sequences, length = _RANKING
        sensitivity = measure_sensitivity(
            self.reference,
            self.weights,
            calibration.tokens[:sequences, :length],
            self.request.low(),
            lambda done, total: self.progress.update(f"sensitivity: layer {done} of {total}"),
        )
        sizes = {group: self.elements(group) for group in sensitivity}
        ladder = Ladder.of(sensitivity, sizes, self.request.low(), self.request.high())
        tuning = Judge.of(self.reference, calibration.first(_TUNING))

        def measure(assignment: Assignment) -> Figures:
            figures = self.measure(assignment, tuning)
            self.progress(f"tried {_summary(assignment)}: {_figures(figures)}")
            return figures

        raised = smallest_passing(ladder, measure)
        while True:
            assignment = ladder.rung(raised)
            figures = self.measure(assignment, judge)
            name = gate_class(assignment.values(), self.plan.kv)
            if passes(figures, name) or raised == ladder.top:
                break
            self.progress(f"missed on the gate text ({_figures(figures)}): raising more groups")
            wanted = ladder.first_below(ladder.left[raised] * 0.97 / margin(figures))
            raised = max(raised + 1, wanted)
        if not passes(figures, name):
            # Even 8 bits are too few: this model stays as it is.
            assignment = dict.fromkeys(sensitivity, self.request.precision_of("fp32"))
            figures = self.measure(assignment, judge)
        self.progress(f"auto chose {_summary(assignment)}")
        return assignment, figures

    def elements(self, group: str) -> int:
        shapes = (self.checkpoint.shapes[name] for name in self.weights.tensor_names(group))
        return sum(rows * columns for rows, columns in shapes)

    def measure(self, assignment: Assignment, judge: Judge) -> Figures:
        """Build the graph and measure it; the files stay for `finish`, or the next candidate."""
        self.build(assignment)
        capacity = judge.passage.tokens.shape[1]
        manifest = self.manifest(assignment, None)
        with OrtSession(self.folder, manifest, capacity=capacity) as session:
            return judge.measure(session)

    def build(self, assignment: Mapping[str, WeightPrecision]) -> None:
        dialect = OrtDialect(
            self.folder,
            self.weights,
            assignment,
            kv=self.plan.kv,
            context=self.plan.context,
        )
        try:
            build_decoder(dialect, self.weights)
            self.contract: GraphContract = dialect.save()
        finally:
            dialect.graph.close()
        self.weight_bytes = dialect.graph.weight_bytes

    def judge(self, assignment: Assignment, figures: Figures, passage: Passage) -> GateResult:
        name = gate_class(assignment.values(), self.plan.kv)
        enforced = self.request.gate == "on"
        passed = passes(figures, name)
        self.progress(f"gate {name}: {_figures(figures)}: {'passed' if passed else 'missed'}")
        if enforced:
            fp32 = all(isinstance(precision, Fp32) for precision in assignment.values())
            enforce(figures, name, only_cache=fp32 and self.plan.kv != "fp32")
        return GateResult(name, figures, passed, enforced, passage.name, passage.sha256)

    def finish(self, assignment: Assignment, gate: GateResult) -> Manifest:
        write_card(self.folder, self.manifest(assignment, gate))
        manifest = self.manifest(assignment, gate, files=True)
        write_manifest(self.folder, manifest)
        return manifest

    def manifest(
        self, assignment: Assignment, gate: GateResult | None, *, files: bool = False
    ) -> Manifest:
        checkpoint = self.checkpoint
        profile = load_profile(self.plan.target)
        return Manifest(
            schema_version=SCHEMA_VERSION,
            edgelm_version=edgelm.__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            target=self.plan.target,
            spec=checkpoint.spec,
            precision=assignment,
            kv=self.plan.kv,
            weight_bytes=self.weight_bytes,
            limits=Limits(
                self.plan.context, prefill_chunk=min(profile.prefill_chunk, self.plan.context)
            ),
            gate=gate,
            lineage=Lineage(
                source=_portable_name(checkpoint),
                sha256=checkpoint.sha256() if files else "",
                path=None if checkpoint.revision else str(checkpoint.path.resolve()),
                revision=checkpoint.revision,
                license=checkpoint.license,
                compress=_compress_record(checkpoint),
            ),
            graph=self.contract,
            files=hash_files(self.folder) if files else {},
        )


class _Timed:
    """Progress lines with the seconds since the start; updates at most one a second."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.start = self.last = time.monotonic()

    def __call__(self, line: str) -> None:
        self.last = time.monotonic()
        self.progress(f"[{self.last - self.start:5.1f} s] {line}")

    def update(self, line: str) -> None:
        if time.monotonic() - self.last >= 2.0:
            self(line)


def _disk_need(plan: Plan) -> int:
    tokenizer_and_tables = 40_000_000
    return int(1.1 * plan.weight_bytes) + tokenizer_and_tables


def _check_disk(output: Path, plan: Plan) -> None:
    parent = output.absolute().parent
    while not parent.exists():
        parent = parent.parent
    free, need = shutil.disk_usage(parent).free, _disk_need(plan)
    if free < need:
        raise DoesNotFit(
            f"the bundle needs about {format_bytes(need)} of disk, {parent} has "
            f"{format_bytes(free)} free; free some or choose another output folder"
        )


def _portable_name(checkpoint: Checkpoint) -> str:
    """A hub id as it is; of a local path only its last part, which names the model."""
    return checkpoint.name if checkpoint.revision else checkpoint.path.resolve().name


def _compress_record(checkpoint: Checkpoint) -> dict[str, Any] | None:
    path = checkpoint.path / "compress.json"
    return json.loads(path.read_text()) if path.is_file() else None


def _figures(figures: Figures) -> str:
    return (
        f"KL {figures.kl:.4f}, top-1 {figures.top1:.1%}, perplexity ×{figures.perplexity_ratio:.3f}"
    )


def _summary(assignment: Assignment) -> str:
    counts = Counter(describe(precision) for precision in assignment.values())
    return " + ".join(f"{count} × {name}" for name, count in sorted(counts.items()))
