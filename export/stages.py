"""The stages of one export: calibrate, choose, write, judge, compile, finish."""

from collections.abc import Collection
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import onnxruntime
import torch
from tokenizers import Tokenizer

import edgelm
from edgelm.bundle import (
    SCHEMA_VERSION,
    CompiledEngine,
    EngineNeed,
    GraphCheck,
    GraphContract,
    Limits,
    Manifest,
    graph_sha256,
    hash_files,
    write_manifest,
)
from edgelm.checkpoint import Checkpoint
from edgelm.command import format_bytes
from edgelm.devices.kernels import KERNELS
from edgelm.devices.profile import load_profile
from edgelm.devices.tensorrt.versions import RTX
from edgelm.export.allocate import Choice, Frontier
from edgelm.export.auto import Assignment
from edgelm.export.card import write_card
from edgelm.export.engines import compile_ahead, opset_for
from edgelm.export.gate import Judge
from edgelm.export.kept import Kept, key, shared_folder
from edgelm.export.legal import legal_assignment
from edgelm.export.lineage import lineage_of
from edgelm.export.methods import METHODS
from edgelm.export.preparation import prepare
from edgelm.export.progress import Timed, figures_text, summary
from edgelm.export.quantizer import Quantizer
from edgelm.export.reference import Reference
from edgelm.export.request import ExportRequest
from edgelm.export.search import Search, choices_for, eight_bits, offers, whole_precision
from edgelm.export.sensitivity import measure_sensitivity
from edgelm.export.text import SEQUENCES, Passage, read_passage
from edgelm.export.tokenizer_files import write_tokenizer_files
from edgelm.export.weights import Weights
from edgelm.export.writer import needs_widening, write_graph
from edgelm.gate_sample import write_sample
from edgelm.gates import Figures, GateResult, enforce, gate_class, passes
from edgelm.planning import Plan
from edgelm.precision import Fp32, Int4, Int8, KvType, Unquantized, WeightPrecision
from edgelm.runtime.ort import OrtSession

_CALIBRATION = 32  # sequences of it, where the text is that long: KL falls with the logarithm
_FULL_TEXT_PARAMETERS = 500_000_000  # up to this size all sequences are run
_LEAST_SEQUENCES = 2
_TUNING = 4  # sequences of the calibration text on which candidates are compared
# Tokens of each sequence decoded one by one on graphs whose kernels the CPU does not have.
_FOREIGN_TAIL = 8
_RANKING = (4, 64)  # sequences and tokens that rank the groups: 256 tokens order them stably


class Export:
    """One export on its way; each method is a stage."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        need: EngineNeed,
        request: ExportRequest,
        folder: Path,
        progress: Timed,
        work: Path | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.weights = Weights(checkpoint)
        self.plan = plan
        self.need = need
        self.rules = KERNELS[need.name]
        # Candidates are compared where that is fast. On other engines their stand-ins are graphs
        # for the CPU with the same weights; what is delivered is judged itself.
        self.native = need.name == "onnxruntime"
        self.kv: KvType = plan.kv if self.native else "fp32"
        self.engines: tuple[CompiledEngine, ...] = ()
        self.check: GraphCheck | None = None
        self.request = request
        self.method = METHODS[request.method]
        self.quantizer = Quantizer(self.weights, positive_scales=not self.rules.grouped)
        self.folder = folder
        self.progress = progress
        self.work = work

    def run(self) -> Manifest:
        self.progress(
            f"exporting {self.checkpoint.name}: {self.checkpoint.spec.parameters / 1e6:,.1f} M "
            f"parameters, {self.plan.precision}, {self.plan.kv} cache, context "
            f"{self.plan.context:,}"
        )
        write_tokenizer_files(self.checkpoint, self.folder)
        self.reference = Reference(self.checkpoint, context=self.plan.context)
        held_apart = self.passage(self.request.gate_text, SEQUENCES)
        with (
            TemporaryDirectory(dir=self.folder, prefix="scratch-") as scratch,
            ExitStack() as self.stack,
        ):
            self.scratch = Path(scratch)
            self.kept = Kept(self.scratch)
            assignment, result, judge = self.assign(held_apart)
        self.enforce(assignment, result)
        write_sample(self.folder, judge.sample())
        self.compile()
        return self.finish(assignment, result)

    def assign(self, held_apart: Passage) -> tuple[Assignment, GateResult, Judge]:
        """Calibrate, choose, write; once more with more bits while `auto` misses the gate."""
        auto = self.request.plan.precision == "auto"
        assignment = {}
        if not auto:
            assignment = self.legal(self.request.assignment(self.weights.groups()))
        rounds = not all(isinstance(one, Unquantized) for one in assignment.values())
        if auto or rounds or self.plan.kv == "int8":
            calibration = self.passage(self.request.calibration, _CALIBRATION)
            self.calibrate(calibration, assignment)
        self.progress("running the source on the gate text")
        judge = self.judge_on(held_apart)
        if auto:
            assignment = self.choose(calibration)
        while True:
            self.progress(f"quantizing and writing the {self.plan.dialect} graph")
            figures = self.deliver(assignment, judge)
            result = self.judge(assignment, figures, held_apart)
            if not auto or result.passed or self.request.max_size:
                return assignment, result, judge
            more = self.search.more(figures)
            if more is None:
                return assignment, result, judge
            assignment = self.legal(more)
            self.progress(f"missed on the gate text: now {summary(assignment)}")

    def calibrate(self, calibration: Passage, assignment: Assignment) -> None:
        """Run the source on the calibration text for whatever rounding will ask for."""
        kinds = {type(precision) for precision in assignment.values()} or {Int4}
        if self.work:
            self.kept = self.keep(self.work, calibration, kinds)
        self.progress(
            f"calibrating: running the source on {calibration.tokens.numel():,} tokens of "
            f"{calibration.name}"
        )
        self.weights = prepare(
            self.reference,
            calibration.tokens,
            self.method,
            kinds,
            kv=self.plan.kv,
            kept=self.kept,
        )
        # Matrices that are written once need not be kept.
        auto = self.request.plan.precision == "auto"
        again = auto or self.work or needs_widening(assignment.values(), self.plan.kv)
        self.quantizer = Quantizer(
            self.weights,
            self.method,
            kept=self.kept if again else None,
            positive_scales=not self.rules.grouped,
        )

    def keep(
        self, work: Path, calibration: Passage, kinds: Collection[type[WeightPrecision]]
    ) -> Kept:
        """The part of a work folder for all that findings depend on, until this export ends."""
        name = key(
            edgelm.__version__,
            str(torch.__version__),
            onnxruntime.__version__,
            self.checkpoint.sha256(),
            self.checkpoint.spec,
            self.plan.context if self.reference.depends_on_context else None,
            calibration.tokens_sha256,
            self.request.method,
            sorted(kind.__name__ for kind in kinds),
            self.plan.kv == "int8",
        )
        return Kept(self.stack.enter_context(shared_folder(work, name, self.progress)))

    def judge_on(self, passage: Passage) -> Judge:
        """What the source makes of a passage."""
        name = f"source on {passage.tokens_sha256[:16]}"

        def run() -> dict[str, torch.Tensor]:
            return {"hidden": Judge.of(self.reference, passage).hidden}

        return Judge(self.reference, passage, self.kept.tensors(name, run)["hidden"])

    def passage(self, path: Path, sequences: int) -> Passage:
        """A text's sequences: of a large model fewer, since each costs it minutes on a CPU."""
        share = min(1.0, _FULL_TEXT_PARAMETERS / self.checkpoint.spec.parameters)
        sequences = max(_LEAST_SEQUENCES, round(sequences * share))
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        return read_passage(
            path,
            tokenizer,
            vocab_size=self.checkpoint.spec.vocab_size,
            context=self.plan.context,
            sequences=sequences,
        )

    def choose(self, calibration: Passage) -> Assignment:
        """The best within the size asked for, or the smallest that passes on calibration text."""
        asked = self.request.plan
        whole = whole_precision(self.plan.kv)
        if "int4" not in load_profile(self.plan.target).engine(self.plan.engine).precisions:
            self.search = Search(eight_bits(self.weights), whole)
            return self.legal(self.search.assignment)
        sequences, length = _RANKING
        low = Int4(group_size=32, symmetric=bool(asked.symmetric) or not self.rules.grouped)
        sensitivity = self.kept.record(
            f"sensitivity {self.quantizer.grid(low)}",
            dict[str, float],
            lambda: measure_sensitivity(
                self.reference,
                self.weights,
                calibration.tokens[:sequences, :length],
                low,
                lambda done, total: self.progress.update(f"sensitivity: layer {done} of {total}"),
                quantizer=self.quantizer,
            ),
        )
        choices = choices_for(self.rules, group_size=asked.group_size, symmetric=asked.symmetric)
        offered = self.kept.record(
            f"offered {key(low, self.rules, asked.group_size, asked.symmetric)}",
            dict[str, list[Choice]],
            lambda: offers(self.weights, sensitivity, low, choices),
        )
        frontier = Frontier.of(offered)
        self.search = Search(frontier, whole)
        if self.request.max_size:
            return self.within(frontier, self.request.max_size)
        tuning = self.judge_on(calibration.first(_TUNING))

        def measure(assignment: Assignment) -> Figures:
            assignment = self.candidate(assignment)
            figures = self.kept.record(
                f"tried {key(assignment, self.kv)}",
                Figures,
                lambda: self.measure(assignment, tuning),
            )
            self.progress(f"tried {summary(assignment)}: {figures_text(figures)}")
            return figures

        assignment = self.legal(self.search.find(measure))
        self.progress(f"auto chose {summary(assignment)}")
        return assignment

    def within(self, frontier: Frontier, most: int) -> Assignment:
        """The best assignment whose data file is no larger than asked for."""
        budget = most
        while True:
            assignment = self.legal(frontier.within(budget))
            self.write(assignment, dialect=self.plan.dialect, kv=self.plan.kv)
            excess = self.data_bytes() - most
            if excess <= 0:
                self.progress(
                    f"chose {summary(assignment)}: {format_bytes(self.data_bytes())} of "
                    f"{format_bytes(most)}"
                )
                return assignment
            budget -= excess  # norms, biases, rotary tables, a 16-bit embedding

    def data_bytes(self) -> int:
        """Size of the graph's data file."""
        return (self.folder / self.contract.data).stat().st_size

    def legal(self, assignment: Assignment) -> Assignment:
        """The assignment as the target's engine can run it."""
        columns = {group: self.weights.columns(group) for group in assignment}
        asked = self.request.plan
        return legal_assignment(
            assignment,
            columns,
            self.rules,
            group_size=asked.group_size,
            symmetric=asked.symmetric,
        )

    def candidate(self, assignment: Assignment) -> Assignment:
        """What stands for an assignment while candidates are compared on the CPU."""
        if self.native:
            return assignment
        return {group: _stand_in(one) for group, one in self.legal(assignment).items()}

    def measure(self, assignment: Assignment, judge: Judge) -> Figures:
        """Build a graph for the CPU where `deliver` will build, and measure it."""
        self.write(assignment, dialect="ort", kv=self.kv)
        return self.run_through(self.folder, self.contract, judge, assignment)

    def deliver(self, assignment: Assignment, judge: Judge) -> Figures:
        """Write the target's graph and measure it on this machine's CPU."""
        if self.native:
            return self.measure(assignment, judge)
        self.write(assignment, dialect=self.plan.dialect, kv=self.plan.kv)
        own = graph_sha256(self.folder, self.contract)
        if not needs_widening(assignment.values(), self.plan.kv):
            self.progress("running the graph on this machine's CPU for the gate")
            figures = self.run_through(self.folder, self.contract, judge, assignment)
            self.check = GraphCheck(own, own)
            return figures
        self.progress("running the graph in fp32 on this machine's CPU for the gate")
        with TemporaryDirectory(dir=self.scratch) as check:
            folder = Path(check)
            written = write_graph(
                folder,
                self.weights,
                assignment,
                dialect=self.plan.dialect,
                kv=self.plan.kv,
                context=self.plan.context,
                quantizer=self.quantizer,
                opset=opset_for(self.need),
                widened=True,
            )
            self.check = GraphCheck(own, graph_sha256(folder, written.contract), widened=True)
            return self.run_through(folder, written.contract, judge, assignment)

    def write(self, assignment: Assignment, *, dialect: str, kv: KvType) -> None:
        self.contract, self.weight_bytes = write_graph(
            self.folder,
            self.weights,
            assignment,
            dialect=dialect,
            kv=kv,
            context=self.plan.context,
            quantizer=self.quantizer,
            opset=opset_for(self.need),
        )

    def run_through(
        self, folder: Path, contract: GraphContract, judge: Judge, assignment: Assignment
    ) -> Figures:
        manifest = msgspec.structs.replace(self.manifest(assignment, None), graph=contract)
        capacity = contract.cache.capacity or judge.passage.tokens.shape[1]
        with OrtSession(folder, manifest, capacity=capacity) as session:
            return judge.measure(session, tail=None if self.native else _FOREIGN_TAIL)

    def compile(self) -> None:
        """Compile an engine where that needs no GPU."""
        if self.need.name != RTX:
            return
        engine = compile_ahead(self.folder, self.manifest({}, None), self.need, self.progress)
        self.engines = (engine,)

    def judge(self, assignment: Assignment, figures: Figures, passage: Passage) -> GateResult:
        name = gate_class(assignment.values(), self.plan.kv)
        enforced = self.request.gate == "on"
        passed = passes(figures, name)
        self.progress(f"gate {name}: {figures_text(figures)}: {'passed' if passed else 'missed'}")
        return GateResult(name, figures, passed, enforced, passage.name, passage.sha256)

    def enforce(self, assignment: Assignment, gate: GateResult) -> None:
        if gate.enforced:
            fp32 = all(isinstance(precision, Fp32) for precision in assignment.values())
            enforce(gate.figures, gate.gate_class, only_cache=fp32 and self.plan.kv != "fp32")

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
            lineage=lineage_of(checkpoint, hashed=files),
            graph=self.contract,
            files=hash_files(self.folder) if files else {},
            engine=self.need,
            engines=self.engines,
            check=self.check,
        )


def _stand_in(precision: WeightPrecision) -> WeightPrecision:
    """What the CPU's kernels have in place of one scale per output channel."""
    return Int8() if precision == Int8(group_size=0) else precision
