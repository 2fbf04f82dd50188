"""Which precision every group gets, and the graph that follows from it.

A requested precision is written as it is. `auto` starts from the smallest candidate that passes on
calibration text and moves along the frontier as the gate's own text decides.
"""

from collections.abc import Callable
from dataclasses import replace

from edgelm.bundle.records.gates import Figures
from edgelm.checkpoint.source import Checkpoint
from edgelm.cli import format_bytes
from edgelm.export.cached_steps import evaluator_for, frontier_for
from edgelm.export.delivery import Delivery, Writer
from edgelm.export.gate.limits import GateLimits, limits_of_auto, limits_of_mixture
from edgelm.export.gate.measure import Evaluator
from edgelm.export.graph.write import data_bytes
from edgelm.export.precision.bisect import smallest_passing
from edgelm.export.precision.frontier import Frontier
from edgelm.export.precision.legalize import Assignment
from edgelm.export.precision.search import Search, int8_only
from edgelm.export.precision.source import assign_source
from edgelm.export.progress import figures_text, summary
from edgelm.export.quantize.smooth_quant import outlier_groups
from edgelm.export.request import ExportRequest
from edgelm.export.source.reference import Reference
from edgelm.export.source.text import Passage
from edgelm.export.target import Target
from edgelm.planning import SOURCE
from edgelm.quantize.precision import PRECISIONS, Int8

_TUNING = 4  # sequences of the calibration text on which candidates are compared
_RANKING = (4, 64)  # sequences and tokens that rank the groups: 256 tokens order them stably


def requested_assignment(
    request: ExportRequest, target: Target, checkpoint: Checkpoint
) -> Assignment:
    """Every group's precision as requested and as the engine can run it; empty for `auto`.

    Raises:
        UnknownName: the engine cannot run what was requested.
    """
    if request.plan.precision == "auto":
        return {}
    source: Assignment = {}
    if request.plan.precision == SOURCE or SOURCE in request.exceptions.values():
        plain = PRECISIONS[target.activations]
        found = assign_source(checkpoint, target.kernels, target.engine.precisions, plain)
        source = found.assignment
    return target.legalize(request.assignment(target.columns, target.kernels, source))


def requested_limits(request: ExportRequest, target: Target, requested: Assignment) -> GateLimits:
    """The gate's limits; `requested` is the assignment that was requested, empty for `auto`."""
    if not requested:
        return limits_of_auto(has_4_bit="int4" in target.engine.precisions)
    named = {
        group: requested[group] if name == SOURCE else PRECISIONS[name]
        for group, name in request.names(requested).items()
    }
    return limits_of_mixture(named, target.weights, target.plan.kv)


def deliver_requested(writer: Writer, assignment: Assignment, gate: Evaluator) -> Delivery:
    """Write a requested assignment and compare it with the gate."""
    assignment = keeping_outliers(writer, assignment)
    return _with_wider_cache_if_failed(writer, writer.write_and_gate(assignment, gate), gate)


def keeping_outliers(writer: Writer, assignment: Assignment) -> Assignment:
    """An assignment in which inputs with outliers too large for int8 stay unquantized."""
    progress, stats = writer.workspace.progress, writer.quantizer.stats
    kept_inputs: list[str] = []
    if stats is not None:
        kept_inputs = outlier_groups(stats, assignment, exclude=writer.request.excepts)
    if kept_inputs:
        names = ", ".join(kept_inputs)
        progress(f"outliers too large for int8: the inputs of {names} stay unquantized")
    return assignment | dict.fromkeys(kept_inputs, Int8(group_size=0))


def deliver_auto(writer: Writer, calibration: Passage, gate: Evaluator) -> Delivery:
    """Write the best mixture within the requested size, or the smallest that passes the gate."""
    frontier = _frontier(writer, gate.reference, calibration)
    if writer.request.max_size:
        assignment = fit_budget(writer, frontier, writer.request.max_size)
        return _with_wider_cache_if_failed(writer, writer.write_and_gate(assignment, gate), gate)
    search = _start(writer, frontier, gate.reference, calibration)
    delivery = writer.write_and_gate(writer.target.legalize(search.assignment), gate)
    while not delivery.gate.passed:
        larger = search.next_larger(delivery.gate.figures)
        if larger is None:
            return _with_wider_cache_if_failed(writer, delivery, gate)
        assignment = writer.target.legalize(larger)
        writer.workspace.progress(f"failed on the gate text: now {summary(assignment)}")
        delivery = writer.write_and_gate(assignment, gate)
    return try_smaller(writer, search, delivery, gate)


def fit_budget(writer: Writer, frontier: Frontier, max_bytes: int) -> Assignment:
    """The best assignment whose data file has at most `max_bytes`."""
    target, budget = writer.target, max_bytes
    while True:
        assignment = target.legalize(frontier.within(budget))
        size = data_bytes(writer.quantizer, assignment, target.format)
        if size <= max_bytes:
            sizes = f"{format_bytes(size)} of {format_bytes(max_bytes)}"
            writer.workspace.progress(f"chose {summary(assignment)}: {sizes}")
            return assignment
        budget -= size - max_bytes  # norms, biases, rotary tables, a 16-bit embedding


def try_smaller(writer: Writer, search: Search, passed: Delivery, gate: Evaluator) -> Delivery:
    """After failures: what lies between the last one and this pass, if that passes too."""
    smaller = search.next_smaller()
    if smaller is None:
        return passed
    assignment, workspace = writer.target.legalize(smaller), writer.workspace
    workspace.progress(f"passed; trying a smaller one: {summary(assignment)}")
    with workspace.temporary() as folder:
        delivery = writer.write_and_gate(assignment, gate, folder=folder)
        if not delivery.gate.passed:
            return passed
        delivery.graph.move(folder, workspace.bundle)
    return delivery


def _frontier(writer: Writer, reference: Reference, calibration: Passage) -> Frontier:
    target = writer.target
    if "int4" not in target.engine.precisions:
        return int8_only(writer.quantizer.weights)
    sequences, length = _RANKING
    cache = writer.quantizer.cache
    assert cache is not None, "a quantizer of candidates has a cache"
    return frontier_for(
        target,
        reference,
        writer.quantizer,
        calibration.tokens[:sequences, :length],
        cache,
        writer.workspace.progress,
    )


def _start(
    writer: Writer, frontier: Frontier, reference: Reference, calibration: Passage
) -> Search:
    """A search at the smallest assignment that passes on a part of the calibration text."""
    search = Search(frontier, PRECISIONS[writer.target.activations])
    if not frontier.steps:
        return search
    workspace = writer.workspace
    progress = workspace.progress
    text = calibration.first(_TUNING)
    title = "a part of the calibration text"
    tuning = evaluator_for(reference, text, title, workspace.cache, progress)
    search.position = smallest_passing(frontier, _tried(writer, tuning))
    progress(f"auto chose {summary(writer.target.legalize(search.assignment))}")
    return search


def _tried(writer: Writer, tuning: Evaluator) -> Callable[[Assignment], Figures]:
    def evaluate(assignment: Assignment) -> Figures:
        figures = writer.evaluate_candidate(assignment, tuning)
        writer.workspace.progress(f"tried {summary(assignment)}: {figures_text(figures)}")
        return figures

    return evaluate


def _with_wider_cache_if_failed(writer: Writer, delivery: Delivery, gate: Evaluator) -> Delivery:
    """A second try where an 8-bit cache that was not requested fails the gate."""
    if delivery.gate.passed or writer.request.gate == "off":
        return delivery
    wider = writer.target.with_wider_cache()
    if wider is None:
        return delivery
    kv = writer.target.plan.kv
    writer.workspace.progress(f"failed with an {kv} cache: trying {wider.plan.kv}")
    return replace(writer, target=wider).write_and_gate(delivery.assignment, gate)
