"""Write the target's graph and measure it on this machine's CPU.

Candidates are compared where that is fast, in a graph for the CPU; what is delivered is measured
itself, or, where the CPU lacks kernels for its types, with dequantized weights.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from edgelm.bundle import GraphCheck, graph_sha256
from edgelm.bundle.records.gates import GATES, Figures, GateResult, passes
from edgelm.bundle.records.self_test import SelfTestRecord
from edgelm.export.bundle.draft import draft_manifest
from edgelm.export.cached_steps import candidate_name, graph_name
from edgelm.export.gate.graph_run import (
    GraphRun,
    listing_text_files,
    measure_behavior,
    record_self_test,
)
from edgelm.export.gate.limits import GateLimits
from edgelm.export.gate.measure import Evaluator
from edgelm.export.graph.write import WrittenGraph, write_graph
from edgelm.export.precision.legalize import Assignment
from edgelm.export.precision.search import cpu_equivalent
from edgelm.export.progress import behavior_text, figures_text
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.weights import Weights
from edgelm.export.request import ExportRequest
from edgelm.export.target import Target
from edgelm.export.workspace import Workspace
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.onnxruntime.ort import OrtEngine
from edgelm.runtime.model import LanguageModel
from edgelm.runtime.process_memory.heap import give_back


@dataclass(frozen=True)
class Delivery:
    """A graph that was written for a target, and what the gate measured.

    target: with the cache that the graph has.
    assignment: the precision of every group.
    graph: its files.
    weights: those that it was written of.
    check: which graph was measured; None where it is the target's own CPU.
    gate: the result.
    self_test: what the graph computed, for the bundle's self-test; None if the gate failed.
    """

    target: Target
    assignment: Assignment
    graph: WrittenGraph
    weights: Weights
    check: GraphCheck | None
    gate: GateResult
    self_test: SelfTestRecord | None = None


@dataclass(frozen=True)
class Writer:
    """Writes graphs of one quantized source for one target, and measures them.

    `limits` are those of the request: whatever it is answered with is compared with the same.
    """

    workspace: Workspace
    request: ExportRequest
    target: Target
    quantizer: Quantizer
    limits: GateLimits

    def write(self, assignment: Assignment, folder: Path) -> WrittenGraph:
        """Write the graph into a folder."""
        target = self.target
        self.workspace.progress(f"quantizing and writing the {target.plan.dialect} graph")
        segments = target.segments(self.request.segments)
        form = replace(target.format, segments=segments, adapted=self.request.adapted)
        return write_graph(folder, self.quantizer, assignment, form)

    def write_and_gate(
        self, assignment: Assignment, evaluator: Evaluator, *, folder: Path | None = None
    ) -> Delivery:
        """Write the graph into the bundle, or another folder, and compare it with the gate."""
        progress, target = self.workspace.progress, self.target
        folder = folder or self.workspace.bundle
        graph = self.write(assignment, folder)
        name, limits = self.limits
        run, check = self._measure(folder, graph, assignment, evaluator)
        passed = passes(run.figures, limits) and (run.behavior is None or run.behavior.passed)
        progress(f"gate {name}: {figures_text(run.figures)}: {'passed' if passed else 'failed'}")
        if run.behavior is not None:
            progress(behavior_text(run.behavior))
        text = evaluator.passage
        gate = GateResult(
            gate_class=name,
            figures=run.figures,
            passed=passed,
            enforced=self.request.gate == "on",
            text=text.name,
            text_sha256=text.sha256,
            behavior=run.behavior,
            limits=None if limits == GATES[name] else limits,
        )
        return Delivery(
            target, assignment, graph, self.quantizer.weights, check, gate, run.self_test
        )

    def evaluate_candidate(self, assignment: Assignment, evaluator: Evaluator) -> Figures:
        """Figures of an assignment, or of its equivalent on the CPU."""
        target, quantizer = self.target, self.quantizer
        if not target.is_cpu:
            legal = target.legalize(assignment)
            assignment = {group: cpu_equivalent(one) for group, one in legal.items()}
        form, cache = target.candidate_format, quantizer.cache
        assert cache is not None, "a quantizer of candidates has a cache"
        name = candidate_name(
            assignment, evaluator.passage, target.eval_settings, form.kv, quantizer.positive_scales
        )
        figures = cache.load_record(name, Figures)
        if figures is None:
            with self.workspace.temporary() as folder:
                graph = write_graph(folder, quantizer, assignment, form)
                figures = _run(folder, graph, target, evaluator)
            cache.save_record(name, figures)
        return figures

    def _measure(
        self,
        folder: Path,
        graph: WrittenGraph,
        assignment: Assignment,
        evaluator: Evaluator,
    ) -> tuple[GraphRun, GraphCheck | None]:
        """The run of a graph, or of the same with dequantized weights; and which of the two."""
        target = self.target
        own = graph_sha256(folder, graph.contract)
        if target.runs_on_cpu(assignment.values()):
            check = None if target.is_cpu else GraphCheck(own, own)
            return self._run_cached(own, folder, graph, evaluator, dequantized=False), check
        with self.workspace.temporary() as other:
            plain = write_graph(other, self.quantizer, assignment, target.check_format)
            checked = graph_sha256(other, plain.contract)
            run = self._run_cached(checked, other, plain, evaluator, dequantized=True)
        return run, GraphCheck(own, checked, dequantized=True)

    def _run_cached(
        self,
        sha256: str,
        folder: Path,
        graph: WrittenGraph,
        evaluator: Evaluator,
        *,
        dequantized: bool,
    ) -> GraphRun:
        """A whole graph's run; the same graph is not run twice."""
        cache = self.workspace.cache
        record = graph_name(sha256, evaluator.passage, self.target.eval_settings)
        stored = cache.load_record(record, GraphRun)
        if stored is not None and (stored.self_test or not self._needs_answers(stored.figures)):
            return stored
        self.workspace.progress("running the graph on this machine's CPU for the gate")
        with _open(folder, graph, self.target, evaluator) as session:
            figures = evaluator.measure(session, tail=self.target.eval_settings.tail)
            run = GraphRun(figures)
            if self._needs_answers(figures):
                run = self._with_answers(run, session, graph, evaluator, dequantized)
        cache.save_record(record, run)
        return run

    def _needs_answers(self, figures: Figures) -> bool:
        """Whether a graph with these figures may be delivered."""
        return passes(figures, self.limits.threshold) or self.request.gate == "off"

    def _with_answers(
        self,
        run: GraphRun,
        session: EngineSession,
        graph: WrittenGraph,
        evaluator: Evaluator,
        dequantized: bool,
    ) -> GraphRun:
        """The run with sampled and greedy answers; the session is closed."""
        workspace, reference = self.workspace, evaluator.reference
        draft = draft_manifest(reference.checkpoint, self.target, graph)
        manifest = listing_text_files(draft, workspace.bundle)
        session.rewind(0)
        with LanguageModel(workspace.bundle, manifest, session) as model:
            record = record_self_test(model, evaluator.sample(), dequantized=dequantized)
            behavior = measure_behavior(model, reference, workspace.cache, workspace.progress)
        return GraphRun(run.figures, behavior, record)


def _open(folder: Path, graph: WrittenGraph, target: Target, evaluator: Evaluator) -> EngineSession:
    capacity = graph.contract.cache.capacity or evaluator.passage.tokens.shape[1]
    give_back()  # what quantizing left, before the engine's copy of the weights
    chunk = target.eval_settings.prefill_chunk
    return EngineSession(OrtEngine(folder, graph.contract, capacity=capacity, prefill_chunk=chunk))


def _run(folder: Path, graph: WrittenGraph, target: Target, evaluator: Evaluator) -> Figures:
    with _open(folder, graph, target, evaluator) as session:
        return evaluator.measure(session, tail=target.eval_settings.tail)
