"""The bundle's README: the model card."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from edgelm.bundle import Manifest
from edgelm.bundle.records.adapters import AdapterRecord
from edgelm.bundle.records.embedding import EmbeddingRecord
from edgelm.bundle.records.gates import Figures
from edgelm.checkpoint.student import StudentRecord
from edgelm.cli import format_bytes
from edgelm.perplexity import ratio_text
from edgelm.quantize.precision import describe

CARD = "README.md"


def write_card(folder: Path, manifest: Manifest) -> None:
    """Write `README.md`."""
    (folder / CARD).write_text(card(manifest))


_HOW = {
    "onnxruntime": ("pip install 'edgelm[cpu]'",),
    "onnxruntime-cuda": ("pip install 'edgelm[gpu]'",),
    "tensorrt-rtx": ("pip install 'edgelm[rtx]'",),
    "tensorrt": (
        # Not cuda-bindings alone: the newest is for a newer CUDA than JetPack's.
        "pip install 'edgelm[tensorrt]'     # on a Jetson as in edgelm's docs/jetson.md, step 3",
        "edge-export --finalize .           # once, on the device: compiles the engine",
    ),
}


def _engine(manifest: Manifest) -> str:
    need = manifest.engine
    name = f"{need.name} {need.version}".strip()
    if manifest.pending:
        return f"{name} or later of its dialect, to be compiled on the device"
    made = [f"`{one.file}` by {one.version}" for one in manifest.engines]
    return ", ".join([name, *made])


def card(manifest: Manifest) -> str:
    """The text of the card."""
    spec, gate, lineage = manifest.spec, manifest.gate, manifest.lineage
    counts = Counter(describe(precision) for precision in manifest.precision.values())
    mixture = ", ".join(f"{count} groups {name}" for name, count in counts.most_common())
    size = format_bytes(manifest.weight_bytes)
    bits = 8 * manifest.weight_bytes / spec.parameters
    lines = [
        "---",
        *([f"license: {lineage.license}"] if lineage.license else []),
        "tags: [edgelm, onnx]",
        "---",
        f"# {Path(lineage.source).name} for {manifest.target}",
        "",
        f"A bundle written by edgelm {manifest.edgelm_version}. Run it:",
        "",
        "```",
        *_HOW.get(manifest.engine.name, ()),
        *([] if manifest.embedding else ["edge-run . --chat"]),
        "```",
        *_embedding_use(manifest),
        "",
        "| | |",
        "|---|---|",
        f"| source | {lineage.source}"
        + (f" @ {lineage.revision}" if lineage.revision else "")
        + (f", with the adapter {lineage.adapter} merged" if lineage.adapter else "")
        + " |",
        f"| license | {lineage.license or 'not stated by the source'} |",
        f"| architecture | {spec.family}, {spec.parameters / 1e6:,.1f} M parameters |",
        f"| weights | {size}, {bits:.2f} bits per weight: {mixture} |",
        f"| key-value cache | {manifest.kv} |",
        f"| context | {manifest.limits.context:,} tokens |",
        f"| engine | {_engine(manifest)} |",
    ]
    if gate:
        figures = gate.figures
        verdict = "passed" if gate.passed else "FAILED"
        if not gate.enforced:
            verdict += ", not enforced"
        lines += [
            f"| gate ({gate.gate_class}) | {verdict} |",
            f"| KL to the source | {figures.kl:.4f}{_error(figures.kl_error, 4)} nats per token |",
            f"| same top token | {figures.top1:.1%}{_points(figures.top1_error)} |",
            f"| perplexity | {_perplexity(figures)} |",
            f"| measured on | {figures.tokens:,} tokens of {gate.text}, through the cache |",
        ]
        if gate.behavior is not None:
            lines += [
                f"| sampled answers: {one.trait} | {one.bundle:.0%}, its source {one.source:.0%} "
                f"(± {100 * one.error:.0f} points; {gate.behavior.prompts} prompts) |"
                for one in gate.behavior.traits
            ]
    if manifest.embedding is not None:
        lines += _embedding(manifest.embedding)
    if manifest.adapters:
        lines += _adapters(manifest.adapters)
    if lineage.compress:
        lines += _student(lineage.compress)
    return "\n".join([*lines, ""])


def _embedding_use(manifest: Manifest) -> list[str]:
    if manifest.embedding is None:
        return []
    prompts = manifest.embedding.settings.prompts
    option = ', prompt="query"' if "query" in prompts else ""
    return [
        "",
        "```python",
        "import edgelm",
        "",
        f'vectors = edgelm.load(".").embed(["Why is the sky blue?"]{option})',
        "```",
    ]


def _embedding(record: EmbeddingRecord) -> list[str]:
    settings, gate = record.settings, record.gate
    normalized = ", normalized" if settings.normalize else ""
    lines = [
        f"| vectors | {record.dimensions} dimensions, pooled by {settings.pooling}{normalized} |",
        f"| prompts | {', '.join(settings.prompts) or 'none'} |",
        f"| longest text | {settings.max_tokens:,} tokens |",
    ]
    if gate is None:
        return lines
    verdict = "passed" if gate.passed else "FAILED"
    return [
        *lines,
        f"| gate ({gate.gate_class}) | {verdict}{'' if gate.enforced else ', not enforced'} |",
        f"| cosine distance to the source | {gate.figures.mean:.5f}, worst "
        f"{gate.figures.worst:.5f}, of {gate.figures.texts} texts of {gate.text} |",
        f"| same nearest text | {gate.figures.neighbors:.0%} |",
    ]


def _adapters(records: Sequence[AdapterRecord]) -> list[str]:
    lines = [
        "",
        "## Adapters",
        "",
        f'One is chosen per request: `lm.generate(..., adapter="{records[0].name}")`, or its name '
        "as the model of a request to `edge-serve`.",
        "",
        "| name | rank | trained on | KL to the source with it merged | same top token |",
        "|---|---:|---|---:|---:|",
    ]
    for one in records:
        gate = one.gate
        kl, top1 = ("", "") if gate is None else (f"{gate.kl:.4f}", f"{gate.top1:.1%}")
        lines.append(f"| {one.name} | {one.rank} | {one.base} | {kl} | {top1} |")
    return lines


def with_section(text: str, title: str, body: str) -> str:
    """A card with a section at its end in place of its older one; without it if `body` is empty."""
    start, heading, rest = text.partition(f"\n## {title}\n")
    _, following, after = rest.partition("\n## ") if heading else ("", "", "")
    kept = start + following + after
    return kept if not body else f"{kept.rstrip()}\n\n## {title}\n\n{body}\n"


def _perplexity(figures: Figures) -> str:
    """Of a broken graph, whose perplexity has hundreds of digits, as powers of ten."""
    if max(figures.perplexity, figures.perplexity_ratio) >= 1e6:
        return f"{figures.perplexity:.1e}, {ratio_text(figures.perplexity_ratio)}"
    error = _error(figures.perplexity_ratio_error, 3)
    return f"{figures.perplexity:.2f}, {ratio_text(figures.perplexity_ratio)}{error}"


def _error(error: float | None, digits: int) -> str:
    """A standard error; nothing where it was not measured."""
    return "" if error is None else f" ± {error:.{digits}f}"


def _points(error: float | None) -> str:
    return "" if error is None else f" ± {100 * error:.1f} points"


def _student(record: StudentRecord) -> list[str]:
    """How the source itself was made, if edgelm compressed it."""
    share = record.parameters / record.teacher_parameters
    lines = [
        "",
        f"## A student of {record.teacher}",
        "",
        f"{record.parameters / 1e6:,.1f} M parameters, {share:.0%} of its teacher's.",
        "",
        "| | teacher | student |",
        "|---|---:|---:|",
        *(
            f"| {name.replace('_', ' ')} | {record.teacher_shape[name]:,} | {size:,} |"
            for name, size in record.shape.items()
        ),
    ]
    trained = [f"{one.name} on {one.tokens:,} tokens" for one in record.stages if one.tokens]
    lines += ["", f"Stages that saw data: {', '.join(trained)}."] if trained else []
    if record.evaluation:
        lines += ["", "| unquantized | teacher | pruned | student |", "|---|---:|---:|---:|"]
        for task, figures in record.evaluation.items():
            cells = [
                figures[who].text if who in figures else ""
                for who in ("teacher", "pruned", "student")
            ]
            lines.append(f"| {task} | {' | '.join(cells)} |")
    return lines
