"""Quality against size: every method at every group size, on one text.

    python -m bench.studies.quantization.quality_curve model.gguf -o curve/

Only weights are quantized, in the reference model itself: the error that an engine adds (int8
activations, int8 cache) is not included, so that methods can be compared. Needs memory for the
whole model in fp32. With --speed, every precision is also exported and measured; methods do not
differ in speed.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import torch
from tokenizers import Tokenizer

from bench.studies.quantization.precision_speed import Speed, precision_speeds
from edgelm.bench.machine import Machine, describe_machine
from edgelm.bundle.records.gates import Figures
from edgelm.checkpoint.source import Checkpoint, open_checkpoint
from edgelm.cli import run_command
from edgelm.errors import UnknownName
from edgelm.export.bundle.text.tokenizer_files import write_tokenizer_files
from edgelm.export.gate.divergence import Distance
from edgelm.export.gate.measure import Evaluator
from edgelm.export.quantize.methods import METHODS
from edgelm.export.quantize.prepare import prepare
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.weights import Weights
from edgelm.export.source.reference import Reference
from edgelm.export.source.text import CALIBRATION, GATE, Passage, read_passage
from edgelm.export.work.cache import ArtifactCache
from edgelm.quantize.precision import Int4, Int8, describe, stored_bytes
from edgelm.spec.groups import HEAD

_ROWS = 256  # rows of logits compared at a time
_PRECISIONS = (Int4(128), Int4(64), Int4(32), Int4(32, symmetric=True), Int4(16), Int8(32))


class Row(msgspec.Struct, frozen=True):
    """One point of the curve."""

    method: str
    precision: str
    weight_bytes: int
    figures: Figures
    speed: Speed | None = None


class Curve(msgspec.Struct, frozen=True):
    """All points, and the conditions of the measurement."""

    source: str
    text: str
    text_sha256: str
    calibration: str
    machine: Machine
    rows: list[Row]

    def markdown(self) -> str:
        """The points as a table, smallest first within a method."""
        lines = [
            f"{self.source} on {self.text} ({self.rows[0].figures.tokens:,} tokens), calibrated on "
            f"{self.calibration}, {self.machine.cpu}:",
            "",
            "| method | weights | MB | KL | top-1 | perplexity | pp512 tok/s | tg32@d512 tok/s |",
            "|---|---|---:|---:|---:|---:|---:|---:|",
        ]
        for row in self.rows:
            figures = row.figures
            lines.append(
                f"| {row.method} | {row.precision} | {row.weight_bytes / 1e6:.1f} | "
                f"{figures.kl:.4f} | {figures.top1:.1%} | ×{figures.perplexity_ratio:.3f} | "
                + (
                    f"{speed.prompt_tokens_per_second:.0f} | {speed.tokens_per_second:.0f} |"
                    if (speed := row.speed)
                    else "| |"
                )
            )
        return "\n".join(lines) + "\n"


def measure(evaluator: Evaluator, quantizer: Quantizer, precision: Int4 | Int8) -> Figures:
    """Divergence of the quantized model from the source."""
    reference, distance = evaluator.reference, Distance()
    source_head, head = reference.head(), reference.head()
    for group in quantizer.weights.groups():
        rounded = quantizer.dequantized(group, precision)
        reference.overrides.update(rounded)
        if group == HEAD:
            [head] = rounded.values()
    try:
        for tokens, hidden in zip(evaluator.passage.tokens, evaluator.hidden, strict=True):
            ours = reference.hidden_states(tokens[None])[0]
            for at in range(0, len(tokens), _ROWS):
                rows = slice(at, at + _ROWS)
                source = reference.logits(hidden[rows], source_head)
                other = reference.logits(ours[rows], head)
                distance.add(source, other, tokens[at + 1 : at + 1 + len(source)])
    finally:
        reference.overrides = {}
    return distance.figures()


def weight_bytes(weights: Weights, precision: Int4 | Int8) -> int:
    """Bytes of all matrices at one precision, and of norms and biases in fp32."""
    shapes = weights.checkpoint.shapes
    total = sum(4 * shape[0] for shape in shapes.values() if len(shape) == 1)
    for group in weights.groups():
        parts = [shapes[name] for name in weights.tensor_names(group)]
        total += stored_bytes(sum(part[0] for part in parts), parts[0][1], precision)
    return total


def rows(
    checkpoint: Checkpoint, calibration: Passage, text: Passage, methods: Iterable[str]
) -> Iterator[Row]:
    """Measure every method at every precision, one after the other."""
    reference, plain = Reference(checkpoint), Weights(checkpoint)
    evaluator = Evaluator.from_passage(reference, text)
    kinds = {type(precision) for precision in _PRECISIONS}
    with tempfile.TemporaryDirectory(prefix="edgelm-moments-") as scratch:
        cache = ArtifactCache(Path(scratch))
        # Methods that compensate come first: their calibration serves all.
        for name in sorted(methods, key=lambda name: METHODS[name].rounding != "gptq"):
            method = METHODS[name]
            weights, stats = prepare(reference, calibration, method, kinds, kv="fp32", cache=cache)
            quantizer = Quantizer(weights, method, stats=stats)
            for precision in _PRECISIONS:
                figures = measure(evaluator, quantizer, precision)
                yield Row(name, describe(precision), weight_bytes(plain, precision), figures)


def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m bench.studies.quantization.quality_curve`."""
    parser = argparse.ArgumentParser(description="Quality against size of quantization methods.")
    add = parser.add_argument
    add("source", help="Hugging Face folder, hub id, or .gguf file")
    add("-o", "--out", type=Path, required=True, metavar="DIR", help="folder for the table")
    add("--text", type=Path, default=GATE, metavar="FILE", help="evaluated on (default: built in)")
    add("--calibration", type=Path, default=CALIBRATION, metavar="FILE", help="(default: built in)")
    add("--speed", type=int, default=0, metavar="ROUNDS", help="also measure speed (default: no)")
    add("--methods", default=",".join(METHODS), metavar="A,B", help="default: all")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    methods = arguments.methods.split(",")
    if unknown := set(methods) - set(METHODS):
        raise UnknownName(f"unknown methods {unknown}; known: {', '.join(METHODS)}")
    checkpoint = open_checkpoint(arguments.source)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer_files(checkpoint, Path(folder))
        tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    calibration, text = (
        read_passage(path, tokenizer, vocab_size=checkpoint.spec.vocab_size, context=512)
        for path in (arguments.calibration, arguments.text)
    )
    found = []
    for row in rows(checkpoint, calibration, text, methods):
        print(f"{row.method} {row.precision}: KL {row.figures.kl:.4f}", file=sys.stderr, flush=True)
        found.append(row)
    threads = torch.get_num_threads()
    curve = Curve(
        checkpoint.path.name,
        text.name,
        text.sha256,
        calibration.name,
        describe_machine(threads),
        found,
    )
    _write(curve, arguments.out)  # before speed, which may fail independently
    if arguments.speed:
        speeds = precision_speeds(
            arguments.source, _PRECISIONS, rounds=arguments.speed, threads=threads
        )
        measured = [msgspec.structs.replace(row, speed=speeds.get(row.precision)) for row in found]
        curve = msgspec.structs.replace(curve, rows=measured)
        _write(curve, arguments.out)
    print(curve.markdown(), end="")


def _write(curve: Curve, out: Path) -> None:
    (out / "curve.json").write_bytes(msgspec.json.format(msgspec.json.encode(curve)))
    (out / "curve.md").write_text(curve.markdown(), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
