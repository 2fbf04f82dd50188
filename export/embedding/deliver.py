"""Choose precisions, write the graph of an embedding model, and compare its vectors."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from edgelm.bundle import GraphCheck, graph_sha256
from edgelm.bundle.records.embedding import (
    MAX_DISTANCE,
    EmbeddingClass,
    EmbeddingFigures,
    EmbeddingGate,
    EmbeddingSample,
)
from edgelm.embedding import EmbeddingSettings
from edgelm.errors import BadInput
from edgelm.export.embedding.vectors import (
    GateTexts,
    Vectors,
    compare_vectors,
    session_vectors,
)
from edgelm.export.graph.write import WrittenGraph, write_graph
from edgelm.export.precision.legalize import Assignment
from edgelm.export.progress import summary
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.request import ExportRequest
from edgelm.export.target import Target
from edgelm.export.workspace import Workspace
from edgelm.quantize.precision import Int4, Mxfp4, Nvfp4, Unquantized, WeightPrecision
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.onnxruntime.ort import OrtEngine

_CANDIDATES = ("int4", "int8")  # of `auto`, before no quantization at all


@dataclass(frozen=True)
class EmbeddingDelivery:
    """A graph that was written, and what the gate measured."""

    assignment: Assignment
    graph: WrittenGraph
    check: GraphCheck | None
    gate: EmbeddingGate
    sample: tuple[EmbeddingSample, ...]


@dataclass(frozen=True)
class EmbeddingWriter:
    """Writes graphs of one source for one target, and compares their vectors.

    Args:
        texts: of the gate.
        source: their vectors by the source.
        settings: how vectors are pooled.
    """

    workspace: Workspace
    request: ExportRequest
    target: Target
    quantizer: Quantizer
    texts: GateTexts
    source: Vectors
    settings: EmbeddingSettings

    def deliver(self, requested: Assignment) -> EmbeddingDelivery:
        """The requested assignment, or the smallest that passes where there is none."""
        if requested:
            return self._write(requested, gate_class(requested.values()))
        delivery: EmbeddingDelivery | None = None
        for assignment in self._candidates():
            delivery = self._write(assignment, "8-bit")
            if delivery.gate.passed:
                break
        assert delivery is not None, "every engine has a type without quantization"
        return delivery

    def _candidates(self) -> Iterable[Assignment]:
        """What `auto` tries, smallest first."""
        engine, plan = self.target.engine, self.request.plan
        names = [name for name in _CANDIDATES if name in engine.precisions]
        for name in (*names, self.target.activations):
            own = replace(self.request, plan=msgspec.structs.replace(plan, precision=name))
            assignment = own.assignment(self.target.columns, self.target.kernels)
            yield self.target.legalize(assignment)

    def _write(self, assignment: Assignment, named: EmbeddingClass) -> EmbeddingDelivery:
        progress, folder = self.workspace.progress, self.workspace.bundle
        progress(f"writing the {self.target.plan.dialect} graph: {summary(assignment)}")
        graph = write_graph(folder, self.quantizer, assignment, self.target.format)
        vectors, check = self._run(folder, graph, assignment)
        figures = compare_vectors(self.source, vectors)
        limit = MAX_DISTANCE[named]
        gate = EmbeddingGate(
            gate_class=named,
            figures=figures,
            limit=limit,
            passed=figures.mean <= limit,
            enforced=self.request.gate == "on",
            text=self.texts.name,
            text_sha256=self.texts.sha256,
        )
        progress(f"gate {named}: {distance_text(figures)}: {'passed' if gate.passed else 'failed'}")
        return EmbeddingDelivery(assignment, graph, check, gate, self._sample(vectors))

    def _sample(self, vectors: Vectors) -> tuple[EmbeddingSample, ...]:
        """The first passage and the last sentence."""
        return tuple(
            EmbeddingSample(tuple(self.texts.tokens[at].tolist()), tuple(vectors[at].tolist()))
            for at in (0, -1)
        )

    def _run(
        self, folder: Path, graph: WrittenGraph, assignment: Assignment
    ) -> tuple[Vectors, GraphCheck | None]:
        """Vectors by the graph, or of the same with dequantized weights; and which of the two."""
        target, own = self.target, graph_sha256(folder, graph.contract)
        if target.runs_on_cpu(assignment.values()):
            check = None if target.is_cpu else GraphCheck(own, own)
            return self._vectors(folder, graph), check
        with self.workspace.temporary() as other:
            plain = write_graph(other, self.quantizer, assignment, target.check_format)
            checked = graph_sha256(other, plain.contract)
            return self._vectors(other, plain), GraphCheck(own, checked, dequantized=True)

    def _vectors(self, folder: Path, graph: WrittenGraph) -> Vectors:
        longest = max(map(len, self.texts.tokens))
        capacity = graph.contract.cache.capacity or longest
        chunk = self.target.prefill_chunk
        engine = OrtEngine(folder, graph.contract, capacity=capacity, prefill_chunk=chunk)
        with EngineSession(engine) as session:
            return session_vectors(session, self.texts.tokens, self.settings)


def gate_class(precisions: Iterable[WeightPrecision]) -> EmbeddingClass:
    """The class of the coarsest precision."""
    kinds = [*precisions]
    if any(isinstance(one, Int4 | Nvfp4 | Mxfp4) for one in kinds):
        return "4-bit"
    return "unquantized" if all(isinstance(one, Unquantized) for one in kinds) else "8-bit"


def check_embedding_request(request: ExportRequest) -> None:
    """Raise BadInput for options that embedding models do not have."""
    if request.gate == "none":
        raise BadInput("gate none is for language models; use gate off for an embedding model")
    if request.max_size is not None:
        raise BadInput(
            "a maximum size is for language models; name the --precision of an embedding model "
            "(int4 is the smallest)"
        )


def distance_text(figures: EmbeddingFigures) -> str:
    """The gate's figures."""
    return (
        f"cosine distance {figures.mean:.5f} (worst {figures.worst:.5f}), same nearest text "
        f"{figures.neighbors:.0%} of {figures.texts}"
    )
