"""What a draft would gain, counted without running it, against counts by hand and real runs."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import edgelm
from bench.studies.speculation import bundle_answers, draft_acceptance, exact
from bench.studies.speculation.draft_acceptance import tokens_per_run
from edgelm.runtime.text.messages import Message
from tests.bench.studies.speculation.conftest import PROMPTS


def test_tokens_per_run_by_hand() -> None:
    # The first token is the prompt's; then right, right, wrong: three tokens; then right and one.
    right = np.array([False, True, True, False, True, False])
    assert tokens_per_run([right], 4) == 5 / 2
    assert tokens_per_run([right], 1) == 5 / 3
    assert tokens_per_run([right, np.array([True])], 4) == 5 / 2, "an answer of one token"
    assert tokens_per_run([np.zeros(9, dtype=bool)], 3) == 1


def test_what_is_counted_is_what_a_run_accepts(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact.FreeDrafts, "usable", lambda _: [2, 3, 4])
    monkeypatch.setattr(exact.FreeDrafts, "ratio", lambda *_: 0.5)
    words = ["study", str(bundle), str(bundle.parent / "prompts.jsonl"), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", [*words, "--answers", "40", "--drafts", str(bundle / "draft")])
    draft_acceptance.main()
    row = capsys.readouterr().out.splitlines()[-1].split("|")
    counted = float(row[6])
    decoded = accepted = 0
    with edgelm.load(bundle, threads=1, speculation="draft") as lm:
        lm._sequences.speculation.costs = exact.FreeDrafts()
        # Drafting begins when the time of a run of one token is known.
        exact.answer(lm, "draft", [40, 41, 42], 20)
        for prompt in PROMPTS:
            question = [Message(role="user", content=prompt)]
            reply = exact.answer(lm, "draft", question, 40)
            decoded += reply.timings.decoded
            accepted += reply.timings.accepted
    assert 0 < accepted < decoded
    assert decoded / (decoded - accepted) == pytest.approx(counted, abs=0.006)


def test_a_draft_of_few_tokens_is_right_less_often(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = bundle.parent / "answers.jsonl"
    prompts = str(bundle.parent / "prompts.jsonl")
    words = ["study", str(bundle), prompts, "--out", str(answers), "--tokens", "24"]
    monkeypatch.setattr(sys, "argv", [*words, "--sequences", "2"])
    bundle_answers.main()
    written = [json.loads(line)["messages"] for line in answers.read_text().splitlines()]
    assert [one[0]["content"] for one in written] == list(PROMPTS)
    assert all(one[1]["content"] for one in written)
    before = answers.read_bytes()
    bundle_answers.main()
    assert answers.read_bytes() == before, "all prompts are answered"
    capsys.readouterr()
    cut = ["--frequent", str(answers), "--sizes", "4,128", "--answers", "24", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["study", str(bundle), prompts, *cut])
    draft_acceptance.main()
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if "draft" in line]
    shares = {row[1].strip(): float(row[2].strip(" %")) for row in rows[1:]}
    assert shares["draft, 4 frequent tokens"] < shares["draft"]
    assert shares["draft, 128 frequent tokens"] <= shares["draft"]
