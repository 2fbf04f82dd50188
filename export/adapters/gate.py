"""Compare a bundle's adapters, as its runtime binds them, with the source that has them merged."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch

from edgelm.bundle import FileEntry
from edgelm.bundle.records.adapters import AdapterGate, AdapterRecord
from edgelm.bundle.records.gates import Threshold, passes
from edgelm.checkpoint.adapter.merge import merged
from edgelm.errors import GateFailed
from edgelm.export.adapters.switchable import SwitchableAdapter
from edgelm.export.bundle.draft import draft_manifest
from edgelm.export.delivery import Delivery
from edgelm.export.gate.divergence import Distance
from edgelm.export.gate.measure import Evaluator, session_logits
from edgelm.export.progress import Progress
from edgelm.export.source.reference import Reference
from edgelm.perplexity import ratio_text
from edgelm.runtime.engines.adapters import LoadedAdapter, read_adapter
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.onnxruntime.ort import OrtEngine

_SEQUENCES, _LENGTH, _TAIL = 2, 128, 16
# How far the strength of an adapter's effect may be from 1: quantized weights change it by a few
# percent, a missing scale or a wrong sign by far more.
_TOLERANCE = 0.25
# An effect below this share of the logits is lost in their rounding.
_MIN_EFFECT = 1e-5


def check_adapters(
    folder: Path,
    delivery: Delivery,
    records: Sequence[AdapterRecord],
    adapters: Sequence[SwitchableAdapter],
    base: Evaluator,
    progress: Progress,
) -> tuple[AdapterRecord, ...]:
    """The records of written adapters with their gates.

    Args:
        folder: the bundle, with its graph and adapters.
        delivery: the graph.
        records: of the adapters.
        adapters: what they were made of, in the same order.
        base: the gate of the bundle.
        progress: is given a line for each.

    Raises:
        GateFailed: an adapter is too far from its source, and the gate is enforced.
    """
    checked = []
    for record, adapter in zip(records, adapters, strict=True):
        progress(f"comparing the adapter {adapter.name} with the source with it merged")
        gate = _gate(folder, delivery, record, adapter, base)
        progress(f"gate of {adapter.name}: {_text(gate)}: {'passed' if gate.passed else 'failed'}")
        if gate.enforced and not gate.passed:
            limits = delivery.gate.threshold
            raise GateFailed(
                f"the adapter {adapter.name} failed its gate: {_text(gate)}; expected KL up to "
                f"{limits.max_kl:.6g}, top-1 of at least {limits.min_top1:.1%}, perplexity up to "
                f"×{limits.max_perplexity_ratio:g} and an effect of {1 - _TOLERANCE:g} to "
                f"{1 + _TOLERANCE:g}; use more bits, merge it (--adapter DIR without "
                "--switchable), or --gate off to write the bundle anyway"
            )
        checked.append(msgspec.structs.replace(record, gate=gate))
    return tuple(checked)


def _text(gate: AdapterGate) -> str:
    effect = "no effect" if gate.effect is None else f"effect {gate.effect:.3f}"
    ratio = ratio_text(gate.perplexity_ratio)
    return f"KL {gate.kl:.4f}, top-1 {gate.top1:.1%}, perplexity {ratio}, {effect}"


def _gate(
    folder: Path,
    delivery: Delivery,
    record: AdapterRecord,
    adapter: SwitchableAdapter,
    base: Evaluator,
) -> AdapterGate:
    target = delivery.target
    draft = draft_manifest(base.reference.checkpoint, target, delivery.graph)
    listed = msgspec.structs.replace(draft, files={record.file: FileEntry(0, "")})
    loaded = read_adapter(folder, listed, record)
    source = Reference(merged(base.reference.checkpoint, adapter.lora), context=target.plan.context)
    graph = delivery.graph.contract
    tokens = base.passage.tokens[:_SEQUENCES, :_LENGTH]
    capacity = graph.cache.capacity or tokens.shape[1]
    engine = OrtEngine(folder, graph, capacity=capacity, prefill_chunk=target.prefill_chunk)
    with EngineSession(engine) as session:
        found = _Comparison(session, source, base).of(tokens, loaded)
    return found.gate(delivery.gate.threshold, enforced=delivery.gate.enforced)


@dataclass
class _Effect:
    """Sums over logits of the changes that an adapter makes, of source and bundle."""

    both: float = 0.0
    source: float = 0.0
    logits: float = 0.0

    def add(self, source: torch.Tensor, plain: torch.Tensor, bundle: torch.Tensor) -> None:
        """Take note of changes [tokens, vocabulary], and of the source's logits without it."""
        source, bundle = _centered(source), _centered(bundle)
        self.both += float((source * bundle).sum(dtype=torch.float64))
        self.source += float((source * source).sum(dtype=torch.float64))
        self.logits += float((_centered(plain) ** 2).sum(dtype=torch.float64))

    @property
    def strength(self) -> float | None:
        """The best factor between the changes; None where the source has none."""
        if self.source <= _MIN_EFFECT**2 * self.logits:
            return None
        return self.both / self.source


def _centered(rows: torch.Tensor) -> torch.Tensor:
    """What a softmax sees of logits."""
    return rows - rows.mean(-1, keepdim=True)


@dataclass(frozen=True)
class _Found:
    distance: Distance
    effect: _Effect

    def gate(self, limits: Threshold, *, enforced: bool) -> AdapterGate:
        figures, strength = self.distance.figures(), self.effect.strength
        acts = strength is None or abs(strength - 1) <= _TOLERANCE
        passed = acts and passes(figures, limits)
        return AdapterGate(
            figures.kl,
            figures.top1,
            figures.perplexity_ratio,
            figures.tokens,
            strength,
            passed,
            enforced,
        )


@dataclass(frozen=True)
class _Comparison:
    """A bundle's session, its source with an adapter, and the gate of both without it."""

    session: EngineSession
    source: Reference
    base: Evaluator

    def of(self, tokens: torch.Tensor, adapter: LoadedAdapter) -> _Found:
        found = _Found(Distance(), _Effect())
        hidden = self.source.hidden_states(tokens)
        heads = self.source.head(), self.base.reference.head()
        for row, states, plain in zip(tokens, hidden, self.base.hidden, strict=False):
            expected = self.source.logits(states, heads[0])
            without = self.base.reference.logits(plain[: len(row)], heads[1])
            ours, bare = self._logits(row, adapter), self._logits(row, None)
            found.distance.add(expected, ours, row[1:])
            found.effect.add(expected - without, without, ours - bare)
        return found

    def _logits(self, tokens: torch.Tensor, adapter: LoadedAdapter | None) -> torch.Tensor:
        """Logits of all tokens: most of them as a prompt, the last ones one by one."""
        self.session.use_adapter(adapter)
        parts = [part.copy() for part in session_logits(self.session, tokens.numpy(), _TAIL)]
        return torch.from_numpy(np.concatenate(parts))
