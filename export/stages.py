"""The stages of one export: calibrate, choose, write, judge, compile, finish."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import edgelm
from edgelm.bundle import (
    SCHEMA_VERSION,
    CompiledEngine,
    EngineRequirement,
    GraphCheck,
    Limits,
    Manifest,
    graph_sha256,
    hash_files,
    write_manifest,
)
from edgelm.bundle.gate_sample import write_sample
from edgelm.bundle.gates import Figures, GateResult, SourceCheck, enforce, gate_class, passes
from edgelm.cli import format_bytes
from edgelm.devices.kernels import KERNELS
from edgelm.devices.profile import load_profile
from edgelm.devices.tensorrt_versions import RTX
from edgelm.export.bundle.compile_ahead import compile_ahead
from edgelm.export.bundle.lineage import lineage_of
from edgelm.export.bundle.model_card import write_card
from edgelm.export.bundle.tokenizer_files import write_tokenizer_files
from edgelm.export.cache import Kept, folder_bytes, work_folder
from edgelm.export.cached_steps import (
    Manner,
    code_name,
    figures_of_candidate,
    figures_of_graph,
    frontier_of,
    judge_of,
    rounding_name,
    source_name,
)
from edgelm.export.disk import bundle_need, check_work_room, work_need
from edgelm.export.gate.measure import Judge
from edgelm.export.graph.variants import PlannedGraphs
from edgelm.export.graph.write import Written
from edgelm.export.precision.bisect import Assignment
from edgelm.export.precision.frontier import Frontier
from edgelm.export.precision.legalize import legal_assignment
from edgelm.export.precision.search import Search, eight_bits, stand_in
from edgelm.export.precision.wider_cache import with_wider_cache
from edgelm.export.progress import Timed, figures_text, summary
from edgelm.export.quantize.methods import METHODS
from edgelm.export.quantize.prepare import prepare
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.smooth_quant import coarse_inputs
from edgelm.export.quantize.weights import Weights
from edgelm.export.request import ExportRequest
from edgelm.export.source.files import SourceFiles
from edgelm.export.source.reference import Reference
from edgelm.export.source.text import SEQUENCES, Passage, affordable, read_passage
from edgelm.export.source_check.check import source_check
from edgelm.planning import Plan
from edgelm.quantize.precision import EIGHT_BIT_KV, PRECISIONS, Int4, Int8, Unquantized
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.ort import OrtEngine
from edgelm.runtime.text.tokenizer import open_tokenizer

_CALIBRATION = 32  # sequences of it, where the text is that long: KL falls with the logarithm
_TUNING = 4  # sequences of the calibration text on which candidates are compared
# Tokens of each sequence decoded one by one on graphs whose kernels the CPU does not have.
_FOREIGN_TAIL = 8
_RANKING = (4, 64)  # sequences and tokens that rank the groups: 256 tokens order them stably


class Export:
    """One export on its way; each method is a stage."""

    def __init__(
        self,
        source: SourceFiles,
        plan: Plan,
        need: EngineRequirement,
        request: ExportRequest,
        folder: Path,
        progress: Timed,
        work: Path | None = None,
    ) -> None:
        self.source, self.checkpoint = source, source.checkpoint
        self.weights = Weights(self.checkpoint)
        self.columns = {group: self.weights.columns(group) for group in self.weights.groups()}
        self.plan = plan
        self.need = need
        self.rules = KERNELS[need.name]
        self.graphs = PlannedGraphs(plan, need, self.checkpoint.spec)
        chunk = min(load_profile(plan.target).prefill_chunk, plan.context)
        self.manner = Manner(None if self.graphs.native else _FOREIGN_TAIL, chunk)
        self.engines: tuple[CompiledEngine, ...] = ()
        self.check: GraphCheck | None = None
        self.source_check: SourceCheck | None = None
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
        for note in self.plan.notes:
            self.progress(note)
        write_tokenizer_files(self.checkpoint, self.folder)
        self.reference = Reference(self.checkpoint, context=self.plan.context)
        held_apart = self.passage(self.request.gate_text, SEQUENCES)
        with (
            TemporaryDirectory(dir=self.folder, prefix="scratch-") as scratch,
            self.findings(Path(scratch)) as self.kept,
        ):
            self.scratch = Path(scratch)
            self.source_check = source_check(
                self.reference,
                held_apart,
                bundle=self.folder,
                context=self.plan.context,
                scratch=self.scratch,
                kept=self.kept,
                enforced=self.request.gate == "on",
                progress=self.progress,
            )
            assignment, result, judge = self.assign(held_apart)
        self.enforce(assignment, result)
        write_sample(self.folder, judge.sample())
        self.compile()
        return self.finish(assignment, result)

    @contextmanager
    def findings(self, scratch: Path) -> Iterator[Kept]:
        """Where what is found out about this source is kept."""
        if self.work is None:
            yield Kept(scratch)
            return
        name, check = source_name(self.source, self.reference, self.plan.context), self.source.check
        with work_folder(self.work, name, code_name(), self.progress) as folder:
            yield Kept(folder, lasting=True, check=check)

    def assign(self, held_apart: Passage) -> tuple[Assignment, GateResult, Judge]:
        """Calibrate, choose, write; once more with more bits while `auto` misses the gate."""
        auto = self.request.plan.precision == "auto"
        assignment = {}
        if not auto:
            assignment = self.legal(self.request.assignment(self.columns, self.rules))
        rounds = not all(isinstance(one, Unquantized) for one in assignment.values())
        if auto or rounds or self.plan.kv in EIGHT_BIT_KV:
            calibration = self.passage(self.request.calibration, _CALIBRATION)
            self.calibrate(calibration, assignment)
            spared = coarse_inputs(self.weights, assignment, but=self.request.excepts)
            if spared:
                names = ", ".join(spared)
                self.progress(f"outliers too large for int8: {names} keep their inputs as they are")
            assignment |= dict.fromkeys(spared, Int8(group_size=0))
        judge = self.judge_of(held_apart, "the gate text")
        assignment = self.choose(calibration) if auto else assignment
        while True:
            result = self.deliver(assignment, judge)
            searching = auto and not self.request.max_size
            if result.passed:
                if not searching:
                    return assignment, result, judge
                return *self.smaller(assignment, result, judge), judge
            more = self.search.more(result.figures) if searching else None
            if more is not None:
                assignment = self.legal(more)
                self.progress(f"missed on the gate text: now {summary(assignment)}")
            elif not self.widen_cache():
                return assignment, result, judge

    def widen_cache(self) -> bool:
        """Give up an 8-bit cache that nobody asked for, so that it alone never fails an export."""
        plan = with_wider_cache(self.checkpoint.spec, self.plan, self.request.plan)
        if plan is None or self.request.gate == "off":
            return False
        self.progress(f"missed with an {self.plan.kv} cache: trying {plan.kv}")
        self.plan = plan
        self.graphs = PlannedGraphs(plan, self.need, self.checkpoint.spec)
        return True

    def smaller(
        self, assignment: Assignment, result: GateResult, judge: Judge
    ) -> tuple[Assignment, GateResult]:
        """After misses: what lies between the last and this one, which passed, if that does too."""
        less = self.search.less()
        if less is None:
            return assignment, result
        tried = self.legal(less)
        self.progress(f"passed; smaller may do: {summary(tried)}")
        found = self.deliver(tried, judge)
        if found.passed:
            return tried, found
        return assignment, self.deliver(assignment, judge)

    def calibrate(self, calibration: Passage, assignment: Assignment) -> None:
        """Run the source on the calibration text for whatever rounding will ask for."""
        kinds = {type(precision) for precision in assignment.values()} or {Int4}
        seen = self.kept.below(calibration.tokens_sha256[:16])
        self.rounded = seen.below(
            rounding_name(
                self.request.method, kinds, self.plan.kv, shared_scales=self.rules.one_cache_scale
            )
        )
        if self.work:
            held = folder_bytes(seen.folder, below=False) + folder_bytes(self.rounded.folder)
            left = work_need(self.checkpoint, self.request, lasting=True) - held
            check_work_room(seen.folder, left, self.folder, bundle_need(self.plan))
        self.weights = prepare(
            self.reference,
            calibration.tokens,
            self.method,
            kinds,
            kv=self.plan.kv,
            shared_scales=self.rules.one_cache_scale,
            kept=seen,
            running=lambda: self.progress(
                f"calibrating: running the source on {calibration.tokens.numel():,} tokens of "
                f"{calibration.name}"
            ),
        )
        # Matrices that are written once need not be kept.
        auto = self.request.plan.precision == "auto"
        again = auto or self.work or self.graphs.needs_widening(assignment.values())
        self.quantizer = Quantizer(
            self.weights,
            self.method,
            kept=self.rounded if again else None,
            positive_scales=not self.rules.grouped,
        )

    def judge_of(self, passage: Passage, title: str) -> Judge:
        running = f"running the source on {title}"
        return judge_of(self.kept, self.reference, passage, lambda: self.progress(running))

    def passage(self, path: Path, sequences: int) -> Passage:
        spec = self.checkpoint.spec
        return read_passage(
            path,
            open_tokenizer(self.folder / "tokenizer.json"),
            vocab_size=spec.vocab_size,
            context=self.plan.context,
            sequences=affordable(sequences, spec.parameters),
        )

    def choose(self, calibration: Passage) -> Assignment:
        """The best within the size asked for, or the smallest that passes on calibration text."""
        asked = self.request.plan
        whole = PRECISIONS[self.graphs.activations]
        if "int4" not in load_profile(self.plan.target).engine(self.plan.engine).precisions:
            self.search = Search(eight_bits(self.weights), whole)
            return self.legal(self.search.assignment)
        sequences, length = _RANKING
        frontier = frontier_of(
            self.rounded,
            self.reference,
            self.quantizer,
            calibration.tokens[:sequences, :length],
            self.rules,
            group_size=asked.group_size,
            symmetric=asked.symmetric,
            progress=lambda done, total: self.progress.update(
                f"sensitivity: layer {done} of {total}"
            ),
        )
        self.search = Search(frontier, whole)
        if self.request.max_size:
            return self.within(frontier, self.request.max_size)
        tuning = self.judge_of(calibration.first(_TUNING), "a part of the calibration text")

        def try_out(assignment: Assignment) -> Figures:
            figures = self.tried(assignment, tuning)
            self.progress(f"tried {summary(assignment)}: {figures_text(figures)}")
            return figures

        assignment = self.legal(self.search.find(try_out))
        self.progress(f"auto chose {summary(assignment)}")
        return assignment

    def within(self, frontier: Frontier, most: int) -> Assignment:
        """The best assignment whose data file is no larger than asked for."""
        budget = most
        while True:
            assignment = self.legal(frontier.within(budget))
            written = self.graphs.write(self.folder, self.quantizer, assignment)
            size = (self.folder / written.contract.data).stat().st_size
            if size <= most:
                sizes = f"{format_bytes(size)} of {format_bytes(most)}"
                self.progress(f"chose {summary(assignment)}: {sizes}")
                return assignment
            budget -= size - most  # norms, biases, rotary tables, a 16-bit embedding

    def legal(self, assignment: Assignment) -> Assignment:
        """The assignment as the target's engine can run it."""
        size, symmetric = self.request.plan.group_size, self.request.plan.symmetric
        return legal_assignment(
            assignment, self.columns, self.rules, group_size=size, symmetric=symmetric
        )

    def tried(self, assignment: Assignment, judge: Judge) -> Figures:
        """What an assignment, or its stand-in, comes to on the CPU."""
        if not self.graphs.native:
            assignment = {group: stand_in(one) for group, one in self.legal(assignment).items()}

        def measure() -> Figures:
            written = self.graphs.write_candidate(self.folder, self.quantizer, assignment)
            return self.run_through(self.folder, written, judge, assignment)

        return figures_of_candidate(
            self.rounded,
            assignment,
            judge.passage,
            self.manner,
            kv=self.graphs.candidate_kv,
            positive_scales=self.quantizer.positive_scales,
            measure=measure,
        )

    def deliver(self, assignment: Assignment, judge: Judge) -> GateResult:
        """Write the target's graph and judge it on this machine's CPU."""
        self.progress(f"quantizing and writing the {self.plan.dialect} graph")
        return self.judge(assignment, self.delivered(assignment, judge), judge.passage)

    def delivered(self, assignment: Assignment, judge: Judge) -> Figures:
        """Write the target's graph and measure it, or what stands for it, on the CPU."""
        self.written = self.graphs.write(self.folder, self.quantizer, assignment)
        own = graph_sha256(self.folder, self.written.contract)
        if self.graphs.native or not self.graphs.needs_widening(assignment.values()):
            self.check = None if self.graphs.native else GraphCheck(own, own)
            return self.figures(own, self.folder, self.written, judge, assignment)
        with TemporaryDirectory(dir=self.scratch) as check:
            folder = Path(check)
            written = self.graphs.write(folder, self.quantizer, assignment, widened=True)
            checked = graph_sha256(folder, written.contract)
            self.check = GraphCheck(own, checked, dequantized=True)
            return self.figures(checked, folder, written, judge, assignment)

    def figures(
        self,
        sha256: str,
        folder: Path,
        written: Written,
        judge: Judge,
        assignment: Assignment,
    ) -> Figures:
        """A whole graph's distance from the source; the same graph is not run twice."""

        def measure() -> Figures:
            self.progress("running the graph on this machine's CPU for the gate")
            return self.run_through(folder, written, judge, assignment)

        return figures_of_graph(self.kept, sha256, judge.passage, self.manner, measure)

    def run_through(
        self, folder: Path, written: Written, judge: Judge, assignment: Assignment
    ) -> Figures:
        engine = OrtEngine(
            folder,
            written.contract,
            capacity=written.contract.cache.capacity or judge.passage.tokens.shape[1],
            prefill_chunk=self.manner.prefill_chunk,
        )
        with EngineSession(engine) as session:
            return judge.measure(session, tail=self.manner.tail)

    def compile(self) -> None:
        """Compile an engine where that needs no GPU."""
        if self.need.name != RTX:
            return
        engine = compile_ahead(
            self.folder, self.manifest({}, None, self.written), self.need, self.progress
        )
        self.engines = (engine,)

    def judge(self, assignment: Assignment, figures: Figures, passage: Passage) -> GateResult:
        name = gate_class(assignment.values(), self.plan.kv)
        enforced = self.request.gate == "on"
        passed = passes(figures, name)
        self.progress(f"gate {name}: {figures_text(figures)}: {'passed' if passed else 'missed'}")
        return GateResult(name, figures, passed, enforced, passage.name, passage.sha256)

    def enforce(self, assignment: Assignment, gate: GateResult) -> None:
        if gate.enforced:
            whole = all(isinstance(precision, Unquantized) for precision in assignment.values())
            wider = load_profile(self.plan.target).engine(self.plan.engine).kv[0]
            only_cache = whole and self.plan.kv in EIGHT_BIT_KV
            enforce(gate.figures, gate.gate_class, wider_cache=wider if only_cache else None)

    def finish(self, assignment: Assignment, gate: GateResult) -> Manifest:
        write_card(self.folder, self.manifest(assignment, gate, self.written))
        manifest = self.manifest(assignment, gate, self.written, files=True)
        self.source.check()
        write_manifest(self.folder, manifest)
        return manifest

    def manifest(
        self,
        assignment: Assignment,
        gate: GateResult | None,
        written: Written,
        *,
        files: bool = False,
    ) -> Manifest:
        checkpoint = self.checkpoint
        return Manifest(
            schema_version=SCHEMA_VERSION,
            edgelm_version=edgelm.__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            target=self.plan.target,
            spec=checkpoint.spec,
            precision=assignment,
            kv=self.plan.kv,
            weight_bytes=written.weight_bytes,
            limits=Limits(self.plan.context, prefill_chunk=self.manner.prefill_chunk),
            gate=gate,
            lineage=lineage_of(checkpoint, self.source.sha256 if files else ""),
            graph=written.contract,
            files=hash_files(self.folder) if files else {},
            engine=self.need,
            engines=self.engines,
            check=self.check,
            source=self.source_check,
        )
