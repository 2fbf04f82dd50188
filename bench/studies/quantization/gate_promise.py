"""Whether a bundle is as close to its source as its quality gate said.

    python -m bench.studies.quantization.gate_promise BUNDLE SOURCE

The gate's KL is measured again as edge-eval measures it (the bundle loaded as it is delivered): on
the gate's own sequences, and on the text between them, which nothing was chosen by. Errors are over
sequences.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edgelm.bench.evaluation.bundle.source_agreement import SourceAgreement
from edgelm.bundle.records.gates import Figures
from edgelm.checkpoint.source import open_checkpoint
from edgelm.compress.evaluation.metrics import Metric
from edgelm.errors import BadInput
from edgelm.export.source.text import GATE, SEQUENCES, read_passage
from edgelm.files.hashing import file_sha256
from edgelm.runtime.loading import load
from edgelm.runtime.model import LanguageModel
from edgelm.runtime.text.tokenizer import open_tokenizer

_ALL = 1_000_000  # tokens: more than the text has
_SHORTEST = 64  # tokens of a sequence


class Promise(NamedTuple):
    """KL (nats per token): what the gate recorded, and with standard errors what was measured.

    `same` is on the gate's sequences, `other` on the text between them.
    """

    recorded: Figures
    same: Metric
    other: Metric

    @property
    def deviation(self) -> float:
        """The KL on the text between them less that on the gate's sequences, in its errors."""
        error = math.hypot(self.same.score().error or 0, self.other.score().error or 0)
        return (self.other.mean - self.same.mean) / error


def measure_promise(bundle: Path, source: str, sequences: int = SEQUENCES) -> Promise:
    """Measure a bundle that was gated on the text that edgelm brings.

    Raises:
        BadInput: it was gated on another text, or not at all.
    """
    with load(bundle) as model:
        gate = model.manifest.gate
        if gate is None or gate.text_sha256 != file_sha256(GATE):
            raise BadInput(f"{bundle} was not gated on edgelm's own text; export it again")
        same, other = gate_rows(bundle, model, sequences)
        agreement = SourceAgreement(open_checkpoint(source), model.session)
        found = [agreement(rows, lambda done, of: None)["kl"] for rows in (same, other)]
        return Promise(gate.figures, *found)


def gate_rows(
    bundle: Path, model: LanguageModel, sequences: int
) -> tuple[list[list[int]], list[list[int]]]:
    """The gate's sequences, and the parts of its text between them."""
    tokenizer = open_tokenizer(bundle / "tokenizer.json")
    size = model.session.vocab_size

    def passage(length: int, count: int) -> list[list[int]]:
        found = read_passage(GATE, tokenizer, vocab_size=size, context=length, sequences=count)
        rows: list[list[int]] = found.tokens.tolist()
        return rows

    gate = passage(model.context, sequences)
    length = len(gate[0])
    # In sequences of one token, the text is read whole.
    text = [row[0] for row in passage(1, _ALL)]
    last = max(1, len(gate) - 1)
    starts = [round(number * (len(text) - length) / last) for number in range(len(gate))]
    pairs = zip([start + length for start in starts], starts[1:], strict=False)
    between = [text[end:start][:length] for end, start in pairs if start - end >= _SHORTEST]
    if not between:
        raise BadInput(f"less than {_SHORTEST} tokens lie between the gate's sequences")
    return gate, between


def table(promise: Promise) -> str:
    """The three figures."""
    recorded, same, other = promise
    parts = [
        ("recorded by the gate", recorded.kl, recorded.kl_error, ""),
        ("the gate's sequences", same.mean, same.score().error, len(same.sums)),
        ("the text between them", other.mean, other.score().error, len(other.sums)),
    ]
    lines = ["| | KL | standard error | sequences |", "|---|---:|---:|---:|"]
    for name, value, error, count in parts:
        lines.append(f"| {name} | {value:.5f} | {error or 0:.5f} | {count} |")
    lines += ["", f"the second and the third differ by {promise.deviation:+.1f} standard errors"]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures of one bundle."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("source", help="the checkpoint that it was exported from")
    given = parser.parse_args(arguments)
    print(table(measure_promise(given.bundle, given.source)))


if __name__ == "__main__":
    main()
