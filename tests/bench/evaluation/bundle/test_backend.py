"""An fp32 bundle on its engine gives what transformers gives for its source."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edgelm
from edgelm.bench.evaluation.bundle.backend import BundleBackend
from edgelm.compress.data.documents import Document
from edgelm.compress.evaluation.backend import Conversation
from edgelm.compress.evaluation.backends.student_backend import StudentBackend
from edgelm.compress.evaluation.encoding import loglikelihood
from edgelm.compress.model import load_model, load_tokenizer
from edgelm.errors import BadInput

TEXTS = [f"The miller waits until level {i} has dropped below the wheel." * 3 for i in range(5)]
PAIRS = [
    ("Why is the sky", " blue"),
    ("Why is the sky", " blue? Because"),
    ("Garnets up to a centimetre", " across"),
    ("Why is the sky blue? Because small molecules", " scatter short waves"),
    ("x" * 300, " y"),  # longer than the context
]


@pytest.fixture(scope="module")
def ours(bundle: Path) -> Iterator[BundleBackend]:
    with edgelm.load(bundle, threads=1) as model:
        yield BundleBackend(model)


@pytest.fixture(scope="module")
def theirs(source: Path) -> StudentBackend:
    return StudentBackend(load_model(source), load_tokenizer(source))


def test_likelihoods_are_those_of_transformers(ours: Any, theirs: Any) -> None:
    found, expected = loglikelihood(ours, PAIRS), loglikelihood(theirs, PAIRS)
    assert [one.log_probability for one in found] == pytest.approx(
        [one.log_probability for one in expected], rel=1e-3
    )
    assert [(one.tokens, one.greedy) for one in found] == [
        (one.tokens, one.greedy) for one in expected
    ]


def test_a_shared_context_is_computed_once(ours: BundleBackend, monkeypatch: Any) -> None:
    context = "Why is the sky blue? Because small molecules scatter short waves"
    steps: list[int] = []
    advance = ours.model.session.advance

    def counted(tokens: Any, *, logits: int = 1) -> Any:
        steps.append(len(tokens))
        return advance(tokens, logits=logits)

    monkeypatch.setattr(ours.model.session, "advance", counted)
    loglikelihood(ours, [(context, f" {word}") for word in ("a", "b", "c", "d")])
    assert len(steps) == 5  # the context but for its last token, then the four words
    assert all(step <= 3 for step in steps[1:])


def test_text_losses_are_those_of_transformers(ours: Any, theirs: Any) -> None:
    documents = [Document(text) for text in TEXTS]
    rows = theirs.text_rows(documents, 100, 3)
    assert ours.text_rows(documents, 100, 3) == rows
    assert ours.losses(rows) == pytest.approx(theirs.losses(rows), rel=1e-4)


def test_too_little_text_is_refused(ours: BundleBackend) -> None:
    with pytest.raises(BadInput, match="too little data: 1 documents"):
        ours.text_rows([Document("Why?")], 100, None)
    with pytest.raises(BadInput, match="holds conversations"):
        ours.text_rows([Document(messages=({"role": "user", "content": "a"},))], 9, None)


def test_answers_are_those_of_transformers(ours: Any, theirs: Any) -> None:
    asked = [Conversation.of_user(text) for text in ("Why?", "Why is the sky blue?", "A garnet")]
    seen: list[tuple[int, int]] = []
    found = ours.generate(asked, 16, lambda *step: seen.append(step))
    expected = theirs.generate(asked, 16)
    assert [one.text for one in found] == [one.text for one in expected]
    assert [one.ended for one in found] == [one.ended for one in expected]
    assert seen[-1] == (3, 3)


def test_the_command_compares_a_bundle_with_its_source(
    bundle: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgelm.bench.evaluation import cli

    rows = [{"context": "Why is the sky", "target": "blue"}, {"context": "A", "target": "garnet"}]
    passages, texts = tmp_path / "passages.jsonl", tmp_path / "texts.jsonl"
    passages.write_text("\n".join(map(json.dumps, rows)))
    texts.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    out = tmp_path / "out"
    given = [str(bundle), "--against", str(source), "--out", str(out), "--threads", "1", "--tasks"]
    given += [f"last_word:{passages}", f"perplexity:{texts}", f"kl:{texts}"]
    assert cli.main(given) == 0
    found = json.loads((out / "evaluation.json").read_text())
    by_task = {one["task"]: one for one in found["tasks"]}
    gap = by_task["perplexity:texts.jsonl"]["differences"]["perplexity:texts.jsonl"]
    assert gap["ratio"] == pytest.approx(1, abs=1e-3)
    divergence = by_task["kl:texts.jsonl"]["figures"]["kl:texts.jsonl kl"]["value"]
    assert divergence < 1e-5
    assert "paired difference" in (out / "evaluation.txt").read_text()
    assert "no difference seen" in (out / "evaluation.html").read_text()
    capsys.readouterr()
    assert cli.main(given) == 0  # nothing is run again
    assert "resumed" in capsys.readouterr().err


def test_a_bundle_is_evaluated_without_torch() -> None:
    modules = ("run", "results.report", "results.bundle_record", "harness", "cli")
    names = ", ".join(f"edgelm.bench.evaluation.{name}" for name in modules)
    code = f"import sys, {names}; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60).split()
    assert "edgelm.bench.evaluation.bundle.backend" in loaded
    assert not {"torch", "transformers", "onnx"} & set(loaded)
