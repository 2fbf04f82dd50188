"""Write a decoder's graph in one of the dialects, or only count its bytes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from edgelm.bundle import GraphContract
from edgelm.devices.planner.memory.window_rows import window_rows
from edgelm.export.graph.decoder import build_decoder
from edgelm.export.graph.dialects.decomposed import DecomposedDialect
from edgelm.export.graph.dialects.ort import OrtDialect
from edgelm.export.graph.dialects.standard import StandardDialect
from edgelm.export.graph.drafts.hidden_states import HiddenStates
from edgelm.export.graph.dtypes import Activations
from edgelm.export.graph.segments import Segments
from edgelm.export.graph.zeros import ZeroQuantizer, ZeroWeights
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.quantize.precision import EIGHT_BIT_KV, KvType, WeightPrecision

_Writer = OrtDialect | StandardDialect | DecomposedDialect
# Dialects of engines that compile a graph; `ort` is written by other rules.
_COMPILED: dict[str, type[StandardDialect] | type[DecomposedDialect]] = {
    "standard": StandardDialect,
    "decomposed": DecomposedDialect,
}


@dataclass(frozen=True, slots=True)
class GraphFormat:
    """What a graph is written as, beside the precision of its matrices.

    dialect: `ort`, `standard` or `decomposed`.
    kv: type of the cache.
    activations: type of the residual stream, which a cache of 16 or 32 bits shares.
    context: tokens that the cache holds.
    opset: an older one than the dialect's own.
    dequantized: in fp32, with dequantized weights, for a check on a CPU without kernels of the
        types.
    segments: into how many the graph is cut, for engines that compile it.
    adapted: groups whose products adapters may change; of the `ort` dialect alone.
    cuts_windows: whether windowed layers hold a window only where that saves memory.
    batch: whether runs take several sequences; in the `ort` dialect with fp32 activations they do
        wherever they can.
    hidden: whether hidden states are outputs, too, for a draft head or an assistant; in the `ort`
        dialect alone.
    lent: layers whose keys and values an assistant reads, which therefore hold all tokens.
    """

    dialect: str
    kv: KvType
    activations: Activations
    context: int
    opset: int | None = None
    dequantized: bool = False
    segments: Segments = 1
    adapted: tuple[str, ...] = ()
    cuts_windows: bool = False
    batch: bool = False
    hidden: bool = False
    lent: tuple[int, ...] = ()


class WrittenGraph(NamedTuple):
    """A graph on disk."""

    contract: GraphContract
    weight_bytes: int

    def move(self, source: Path, target: Path) -> None:
        """Move its files from one folder to another on the same disk, replacing a graph there."""
        for name in self.contract.files:
            (source / name).replace(target / name)


def write_graph(
    folder: Path,
    quantizer: Quantizer,
    assignment: Mapping[str, WeightPrecision],
    form: GraphFormat,
) -> WrittenGraph:
    """Write a checkpoint's graph into a folder.

    Args:
        folder: the folder to write to.
        quantizer: of the checkpoint's matrices.
        assignment: a precision for every group, as `legalize` returns it.
        form: everything else.
    """
    writer = _writer(folder, quantizer, assignment, form)
    try:
        hidden = _build(writer, quantizer, form)
        contract = writer.save()
    finally:
        writer.graph.close()
    if hidden is not None:
        assert isinstance(writer, OrtDialect), "other dialects have no hidden states"
        contract = hidden.described(contract, writer.cache.borrowed)
    return WrittenGraph(contract, writer.graph.weight_bytes)


def data_bytes(
    quantizer: Quantizer, assignment: Mapping[str, WeightPrecision], form: GraphFormat
) -> int:
    """Bytes of the data file that `write_graph` would write; nothing is read or quantized."""
    shapes = ZeroQuantizer(ZeroWeights(quantizer.weights.checkpoint, quantizer.weights.kv_scaling))
    writer = _writer(None, shapes, assignment, form)
    _build(writer, shapes, form)
    return writer.graph.data_bytes


def _build(writer: _Writer, quantizer: Quantizer, form: GraphFormat) -> HiddenStates | None:
    spec = quantizer.weights.checkpoint.spec
    hidden = None
    if form.hidden or spec.draft_head or spec.assistant is not None:
        assert form.dialect == "ort", f"the {form.dialect} dialect has no hidden states"
        assert form.activations == "fp32", "hidden states pass in fp32"
        hidden = HiddenStates(writer.graph, spec)
    build_decoder(writer, quantizer.weights, hidden)
    return hidden


def _writer(
    folder: Path | None,
    quantizer: Quantizer,
    assignment: Mapping[str, WeightPrecision],
    form: GraphFormat,
) -> _Writer:
    if form.dialect == "ort":
        kv, activations = form.kv, form.activations
        if form.dequantized:  # its CPU kernels dequantize themselves
            kv, activations = kv if kv in EIGHT_BIT_KV else "fp32", "fp32"
        spec = quantizer.weights.checkpoint.spec
        return OrtDialect(
            folder,
            quantizer,
            assignment,
            kv=kv,
            context=form.context,
            activations=activations,
            adapted=form.adapted,
            window_rows=window_rows(spec, form.context, form.lent) if form.cuts_windows else None,
            batch=form.batch,
            single=form.hidden,
        )
    assert not form.adapted, f"the {form.dialect} dialect takes no adapters"
    return _COMPILED[form.dialect](
        folder,
        quantizer,
        assignment,
        activations="fp32" if form.dequantized else form.activations,
        context=form.context,
        opset=form.opset,
        dequantized=form.dequantized,
        segments=form.segments,
        batch=form.batch,
    )
