import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgelm.compress.synthesis.log import SynthesisLog, manifest_path, read_manifest
from edgelm.compress.synthesis.plan import Answers, FreeText, vocabulary_words
from edgelm.compress.synthesis.sampling import Sampled, Sampling, draw, sample, stop_ids
from edgelm.compress.synthesis.synthesize import Progress, Synthesis, synthesize
from edgelm.compress.synthesis.text_filters import Filters
from edgelm.errors import BadCheckpoint, BadInput
from tests.checkpoints.models import tiny_model
from tests.forks import run_forked

ANYTHING = Filters(min_characters=1, max_repeated=1, max_run=1, max_unprintable=1)
SAMPLING = Sampling(max_new_tokens=12, batch_size=4, seed=3)
FREE = Synthesis(FreeText(24), "tiny", SAMPLING, ANYTHING)
QUESTIONS = [{"prompt": "Why is the sky blue?"}, {"prompt": "What is a garnet?"}] * 3

Teacher = tuple[Any, Any]


def load(folder: Path) -> Teacher:
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(
        folder
    )


@pytest.fixture(scope="module")
def teacher(tiny_chat: Path) -> Teacher:
    return load(tiny_chat)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, QUESTIONS)))
    return path


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def test_free_text_is_written_and_counted(teacher: Teacher, tmp_path: Path) -> None:
    out, steps = tmp_path / "new" / "text.jsonl", list[Progress]()
    done = synthesize(*teacher, FREE, out, progress=steps.append)
    rows = _rows(out)
    assert done.path == out
    assert done.documents == len(rows) == 24
    assert all(row["source"] == "synthetic:tiny" and row["text"] for row in rows)
    assert len({row["text"] for row in rows}) == 24
    tried = len(steps) * SAMPLING.batch_size
    assert sum(done.dropped.values()) + 24 <= tried <= sum(done.dropped.values()) + 27
    assert 0 < done.tokens <= tried * SAMPLING.max_new_tokens
    assert [step.documents for step in steps] == sorted(step.documents for step in steps)
    assert all(step.tokens_s > 0 for step in steps)
    assert steps[-1].eta_s == 0
    assert all(step.eta_s is None or step.eta_s > 0 for step in steps[:-1])


def test_texts_begin_with_the_starts(teacher: Teacher, tmp_path: Path) -> None:
    starts = ("The miller", "Garnets are")
    request = replace(FREE, kind=FreeText(8, starts))
    synthesize(*teacher, request, tmp_path / "text.jsonl")
    texts = [row["text"] for row in _rows(tmp_path / "text.jsonl")]
    assert {text[:10].rstrip() for text in texts} <= {"The miller", "Garnets ar"}
    assert len({text[:10] for text in texts}) == 2


def test_answers_are_conversations(teacher: Teacher, tmp_path: Path, questions: Path) -> None:
    request = Synthesis(Answers(questions, per_prompt=2), "tiny", SAMPLING, ANYTHING)
    done = synthesize(*teacher, request, tmp_path / "answers.jsonl")
    rows = _rows(tmp_path / "answers.jsonl")
    assert done.documents + sum(done.dropped.values()) == 12
    for row in rows:
        user, assistant = row["messages"]
        assert user in [{"role": "user", "content": q["prompt"]} for q in QUESTIONS]
        assert assistant["role"] == "assistant"
        assert row["text"] == (
            f"<s>user: {user['content']}<|end|><s>assistant: {assistant['content']}<|end|>"
        )


def test_prompts_that_do_not_fit_are_counted(teacher: Teacher, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    lines = [{"prompt": "Why?"}, {"messages": [{"role": "user", "content": "why " * 200}]}]
    path.write_text("\n".join(map(json.dumps, lines)))
    request = Synthesis(Answers(path), "tiny", SAMPLING, ANYTHING)
    assert synthesize(*teacher, request, tmp_path / "out.jsonl").dropped["prompt too long"] == 1


def test_a_killed_run_ends_in_the_same_file(
    teacher: Teacher, tiny_chat: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    synthesize(*teacher, FREE, whole)
    died = run_forked("tests.compress.synthesis.die_synthesizing", str(tiny_chat), str(killed))
    assert died == -signal.SIGKILL
    assert not read_manifest(killed).finished
    with killed.open("ab") as file:  # what a kill in the midst of a write leaves
        file.write(b'{"text":"half a li')
    synthesize(*teacher, FREE, killed)
    assert killed.read_bytes() == whole.read_bytes()
    assert manifest_path(killed).read_bytes() == manifest_path(whole).read_bytes()


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_a_batch_that_was_written_and_not_counted_is_written_once(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    synthesize(*teacher, FREE, whole)
    write = SynthesisLog._write

    def stop_before(log: SynthesisLog, manifest: Any) -> None:
        if manifest.batches == batch + 1:
            raise KeyboardInterrupt
        write(log, manifest)

    monkeypatch.setattr(SynthesisLog, "_write", stop_before)
    with pytest.raises(KeyboardInterrupt):
        synthesize(*teacher, FREE, stopped)
    monkeypatch.undo()
    assert read_manifest(stopped).batches == batch
    assert stopped.stat().st_size > read_manifest(stopped).bytes
    synthesize(*teacher, FREE, stopped)
    assert stopped.read_bytes() == whole.read_bytes()


def test_a_finished_file_is_left_alone(teacher: Teacher, tmp_path: Path) -> None:
    out = tmp_path / "text.jsonl"
    first = synthesize(*teacher, FREE, out)
    before = out.read_bytes()
    steps = list[Progress]()
    assert synthesize(*teacher, FREE, out, progress=steps.append) == first
    assert out.read_bytes() == before
    assert not steps


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (replace(SAMPLING, temperature=0.5), r"temperature was 1.0 and is 0.5; resume with the"),
        (replace(SAMPLING, seed=4), r"seed was 3 and is 4"),
    ],
    ids=["temperature", "seed"],
)
def test_other_settings_are_refused(
    teacher: Teacher, tmp_path: Path, sampling: Sampling, message: str
) -> None:
    out = tmp_path / "text.jsonl"
    synthesize(*teacher, FREE, out)
    with pytest.raises(BadInput, match=message):
        synthesize(*teacher, replace(FREE, sampling=sampling), out)


def test_another_teacher_is_refused(teacher: Teacher, tmp_path: Path) -> None:
    out = tmp_path / "text.jsonl"
    synthesize(*teacher, FREE, out)
    other = tiny_model("llama", vocab_size=320, seed=1)
    with pytest.raises(
        BadInput, match=r"started with other settings: weights was '\w{12}\.\.\.' and"
    ):
        synthesize(other, teacher[1], FREE, out)


def test_files_that_are_not_ours_or_damaged_are_refused(teacher: Teacher, tmp_path: Path) -> None:
    out = tmp_path / "text.jsonl"
    out.write_text("mine")
    with pytest.raises(BadInput, match=r"exists and has no text.jsonl.manifest.json"):
        synthesize(*teacher, FREE, out)
    out.unlink()
    synthesize(*teacher, FREE, out)
    content = out.read_bytes()
    out.write_bytes(content[:50])
    with pytest.raises(BadInput, match=r"has 50 bytes, .* counts .* text is missing"):
        synthesize(*teacher, FREE, out)
    manifest_path(out).write_text("{")
    with pytest.raises(BadInput, match="is damaged"):
        synthesize(*teacher, FREE, out)


def test_nothing_kept_says_why_and_leaves_nothing(teacher: Teacher, tmp_path: Path) -> None:
    request = replace(FREE, filters=replace(ANYTHING, min_characters=5000), kind=FreeText(5))
    with pytest.raises(
        BadInput, match=r"none of \d+ texts was accepted \(\d+ too short.*\); raise max_new"
    ):
        synthesize(*teacher, request, tmp_path / "text.jsonl")
    assert not list(tmp_path.iterdir())


def test_a_hopeless_run_is_given_up_early(teacher: Teacher, tmp_path: Path) -> None:
    sampling = Sampling(max_new_tokens=1, batch_size=64)
    filters = replace(ANYTHING, min_characters=5000)
    steps = list[Progress]()
    request = Synthesis(FreeText(5000), "tiny", sampling, filters)
    with pytest.raises(BadInput, match="none of 256 texts"):
        synthesize(*teacher, request, tmp_path / "text.jsonl", progress=steps.append)
    assert len(steps) == 4


def test_repeated_texts_are_dropped(teacher: Teacher, tmp_path: Path) -> None:
    kind = FreeText(3, ("The miller waits",))
    greedy = replace(FREE, sampling=replace(SAMPLING, temperature=0), kind=kind)
    done = synthesize(*teacher, greedy, tmp_path / "text.jsonl")
    assert done.documents == 1
    assert done.dropped == {"duplicate": 11}  # three batches of four: 3 documents × 4 attempts


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (replace(FREE, kind=FreeText(0)), "documents is 0"),
        (replace(FREE, jaccard_threshold=0), "jaccard_threshold is 0"),
        (replace(FREE, sampling=replace(SAMPLING, temperature=-1)), "temperature is -1"),
        (replace(FREE, sampling=replace(SAMPLING, top_p=0)), "top_p is 0"),
        (replace(FREE, sampling=replace(SAMPLING, batch_size=0)), "batch_size is 0"),
        (replace(FREE, sampling=replace(SAMPLING, seed=-1)), "seed is -1"),
        (
            replace(FREE, sampling=replace(SAMPLING, max_new_tokens=128)),
            "max_new_tokens is 128, the model's context is 128",
        ),
        (replace(FREE, kind=FreeText(4, ("why " * 200,))), "none of 1 starts fits"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_senseless_requests_are_refused(
    teacher: Teacher, tmp_path: Path, request_: Synthesis, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        synthesize(*teacher, request_, tmp_path / "text.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"questions.jsonl:1 is not JSON"),
        ("[]", r"questions.jsonl:1: expected a JSON object, found list"),
        ('{"text": "x"}', r"questions.jsonl:1: no field `prompt` or `messages`, found text"),
        ('{"prompt": 3}', r"`prompt` is 3, expected a text or a list"),
        ('{"prompt": " "}', r"`prompt` is empty"),
        ('{"messages": [{"role": "bot", "content": ""}]}', r'role "bot", expected one of system'),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "holds no question"),
        ("", "holds no examples"),
    ],
)
def test_bad_questions_are_named(teacher: Teacher, tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(line)
    with pytest.raises(BadInput, match=message):
        synthesize(*teacher, Synthesis(Answers(path), "tiny", SAMPLING), tmp_path / "out.jsonl")


def test_answers_need_a_chat_template(
    teacher: Teacher, tmp_path: Path, questions: Path, tiny_chat: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_chat)
    tokenizer.chat_template = None
    request = Synthesis(Answers(questions), "tiny", SAMPLING)
    with pytest.raises(BadInput, match="has no chat template"):
        synthesize(teacher[0], tokenizer, request, tmp_path / "out.jsonl")


def test_vocabulary_words_are_whole_words(teacher: Teacher) -> None:
    words = vocabulary_words(teacher[1])
    assert "the" in words
    assert all(len(word) >= 3 and word.isalpha() for word in words)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_sampling_in_a_batch_is_what_each_row_alone_is(name: str) -> None:
    model = tiny_model(name)
    prompts = [[1, 5, 9, 33], [1], [1, 70, 71, 72, 73, 74, 75, 76, 77, 78]]
    greedy = Sampling(temperature=0, max_new_tokens=12)
    stop = range(60, 70)  # many, so that rows leave the batch at different times

    def run(rows: list[list[int]]) -> list[Sampled]:
        return sample(model, rows, greedy, torch.Generator(), stop=stop, vocab_size=128)

    assert run(prompts) == [run([row])[0] for row in prompts]
    for row, text in zip(prompts, run(prompts), strict=True):
        ids = torch.tensor([[*row, *text.ids]])
        with torch.no_grad():
            likeliest = model(ids).logits[0].argmax(-1).tolist()
        assert likeliest[len(row) - 1 : -1] == list(text.ids)
        assert text.ended == (likeliest[-1] in stop)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log().expand(40_000, 4)
    generator = torch.Generator().manual_seed(0)

    def shares(sampling: Sampling) -> list[float]:
        counts = draw(logits, sampling, generator).bincount(minlength=4)
        return (counts / len(logits)).tolist()

    assert shares(Sampling(top_p=1)) == pytest.approx([0.5, 0.25, 0.15, 0.1], abs=0.01)
    # The third crosses 0.8 and belongs; the shares of the others grow.
    assert shares(Sampling(top_p=0.8)) == pytest.approx([0.5556, 0.2778, 0.1667, 0], abs=0.01)
    assert shares(Sampling(top_p=0.1)) == [1, 0, 0, 0]
    assert shares(Sampling(top_p=1, temperature=0)) == [1, 0, 0, 0]
    squared = [0.25, 0.0625, 0.0225, 0.01]
    expected = [value / sum(squared) for value in squared]
    assert shares(Sampling(top_p=1, temperature=0.5)) == pytest.approx(expected, abs=0.01)


def test_a_nucleus_wider_than_the_first_tokens_is_complete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One row has 60 equally likely tokens, the other has one: each has its own nucleus."""
    monkeypatch.setattr("edgelm.compress.synthesis.sampling._WIDTHS", (4, 16))
    wide = torch.full((90,), -30.0)
    wide[torch.randperm(90, generator=torch.Generator().manual_seed(1))[:60]] = 0
    narrow = torch.zeros(90)
    narrow[7] = 30
    logits = torch.stack([wide, narrow]).repeat(2000, 1)
    drawn = draw(logits, Sampling(top_p=0.9), torch.Generator().manual_seed(0))
    assert set(drawn[1::2].tolist()) == {7}
    counts = drawn[::2].bincount(minlength=90)
    assert not counts[wide < 0].any()
    assert (counts > 0).sum() in (54, 55)  # 0.9 of the 60; rounding decides about the last


def test_a_token_depends_on_its_own_row_alone() -> None:
    logits = torch.randn(8, 500, generator=torch.Generator().manual_seed(3)) * 4
    many = draw(logits, Sampling(top_p=0.95), torch.Generator().manual_seed(0))
    others = torch.zeros_like(logits)
    others[2] = logits[2]
    assert draw(others, Sampling(top_p=0.95), torch.Generator().manual_seed(0))[2] == many[2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_p=1), Sampling(temperature=0)])
def test_logits_that_are_not_finite_are_refused(sampling: Sampling, bad: float) -> None:
    logits = torch.zeros(2, 300)
    logits[1, 7] = bad
    with pytest.raises(BadCheckpoint, match="computes NaN or infinity"):
        draw(logits, sampling, torch.Generator().manual_seed(0))
    logits[1, 7] = -float("inf")  # a token that is never drawn
    assert 7 not in draw(logits.repeat(50, 1), sampling, torch.Generator().manual_seed(0))


def test_every_special_token_ends_a_text(teacher: Teacher) -> None:
    assert stop_ids(*teacher) == {0, 1, 2, 3}
