"""Tasks on local files, on a tiny model with a tokenizer and a chat template."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from edgelm.compress.evaluation.evaluate import evaluate
from edgelm.compress.evaluation.metrics import perplexity_of
from edgelm.compress.evaluation.run_tasks import TASKS
from edgelm.compress.evaluation.task_names import Task, parse_tasks
from edgelm.compress.evaluation.tasks.text_quality import teacher_agreement, text_losses
from edgelm.errors import BadInput, UnknownName
from tests.checkpoints.models import tiny_model
from tests.checkpoints.tiny_chat import CONTEXT, VOCAB
from tests.compress.tokenizers import tiny_fast_tokenizer

TEXTS = [f"The miller waits until level {i} has dropped below the wheel." * 3 for i in range(9)]
PASSAGES = [{"context": "Why is the", "target": "sky"}, {"context": "Garnets", "target": "are"}]
QUESTIONS = [
    {"question": "Why?", "choices": ["because", "it is", "so"], "answer": 2},
    {"question": "What is a garnet?", "choices": ["a stone", "a wheel"], "answer": 0},
]
INSTRUCTIONS = [
    {"prompt": f"{name}?", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    for name in ("Why", "How", "Who")
]
Subject = tuple[Any, Any]


@pytest.fixture(scope="module")
def subject() -> Subject:
    model = tiny_model("llama", vocab_size=VOCAB, max_position_embeddings=CONTEXT)
    return model, tiny_fast_tokenizer()


@pytest.fixture(scope="module")
def teacher() -> Any:
    return tiny_model("llama", vocab_size=VOCAB, max_position_embeddings=CONTEXT, seed=1)


def _write(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


@pytest.fixture
def valid(tmp_path: Path) -> Path:
    return _write(tmp_path / "valid.jsonl", [{"text": text} for text in TEXTS])


def _packed(tokenizer: Any) -> torch.Tensor:
    ids = []
    for text in TEXTS:
        ids += [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    whole = len(ids) // CONTEXT
    return torch.tensor(ids[: whole * CONTEXT]).view(whole, CONTEXT)


def test_tasks_are_a_kind_and_a_file(valid: Path) -> None:
    names = [f"perplexity:{valid}", f"kl:{valid}", "lm-eval:some/folder/task"]
    tasks = parse_tasks(names)
    assert tasks == [
        Task("perplexity", str(valid)),
        Task("kl", str(valid)),
        Task("lm-eval", "some/folder/task"),
    ]
    assert list(map(str, tasks)) == ["perplexity:valid.jsonl", "kl:valid.jsonl", "lm-eval:task"]


@pytest.mark.parametrize("text", ["perplexitty:valid.jsonl", "perplexity", "perplexity:", ":x", ""])
def test_an_unknown_task_names_the_known_kinds(text: str) -> None:
    with pytest.raises(UnknownName) as raised:
        parse_tasks([text])
    known = "perplexity:..., kl:..., last_word:..., multiple_choice:..., ifeval:..., lm-eval:..., "
    known += "mt_bench:..."
    own = "rag, rag_choice, functions, function_choice, needle, persona"
    assert str(raised.value) == (
        f"unknown task {text!r}; known: {known}, and with rows of their own: {own}"
    )


@pytest.mark.parametrize(
    ("old", "new"), [("last-word", "last_word"), ("choice", "multiple_choice")]
)
def test_a_renamed_kind_is_named(old: str, new: str) -> None:
    with pytest.raises(UnknownName, match=f"{old}: is now called {new}:; rename it"):
        parse_tasks([f"{old}:lambada.jsonl"])


@pytest.mark.parametrize("kind", sorted(TASKS.keys() - {"lm-eval", "needle", "persona"}))
def test_a_missing_file_is_told_before_anything_runs(tmp_path: Path, kind: str) -> None:
    text = f"{kind}:{tmp_path / 'absent.jsonl'}"
    with pytest.raises(BadInput, match=f"task '{text}': no such file: .*absent.jsonl"):
        parse_tasks([text])
    with pytest.raises(BadInput, match="no such file"):
        parse_tasks([f"{kind}:{tmp_path}"])


def test_all_kinds_in_the_order_that_was_asked(
    subject: Subject, teacher: Any, valid: Path, tmp_path: Path
) -> None:
    files = {
        "last_word": _write(tmp_path / "lambada.jsonl", PASSAGES),
        "multiple_choice": _write(tmp_path / "questions.jsonl", QUESTIONS),
        "ifeval": _write(tmp_path / "ifeval.jsonl", INSTRUCTIONS),
        "kl": valid,
        "perplexity": valid,
    }
    tasks = parse_tasks([f"{kind}:{file}" for kind, file in files.items()])
    seen = list[str]()
    found = evaluate(*subject, tasks, teacher=teacher, progress=seen.append)
    assert {name: score.n for name, score in found.items()} == {
        "last_word:lambada.jsonl accuracy": 2,
        "last_word:lambada.jsonl perplexity": 2,
        "multiple_choice:questions.jsonl accuracy": 2,
        "multiple_choice:questions.jsonl accuracy_norm": 2,
        "ifeval:ifeval.jsonl prompt_strict": 3,
        "ifeval:ifeval.jsonl instruction_strict": 3,
        "ifeval:ifeval.jsonl prompt_loose": 3,
        "ifeval:ifeval.jsonl instruction_loose": 3,
        "kl:valid.jsonl kl": len(_packed(subject[1])),
        "kl:valid.jsonl top1": len(_packed(subject[1])) * (CONTEXT - 1),
        "perplexity:valid.jsonl": len(_packed(subject[1])),
    }
    assert list(found)[-1] == "perplexity:valid.jsonl"
    assert all(math.isfinite(score.value) for score in found.values())
    assert seen[0] == "last_word:lambada.jsonl 2/2"
    assert "multiple_choice:questions.jsonl 5/5" in seen
    assert "ifeval:ifeval.jsonl 3/3" in seen


def test_text_is_packed_into_rows_of_the_models_context(
    subject: Subject, teacher: Any, valid: Path
) -> None:
    model, tokenizer = subject
    rows = _packed(tokenizer)
    assert len(rows) > 5
    found = evaluate(*subject, parse_tasks([f"perplexity:{valid}", f"kl:{valid}"]), teacher=teacher)
    assert found["perplexity:valid.jsonl"] == perplexity_of(text_losses(model, rows)).score()
    expected = teacher_agreement(model, teacher, rows)
    assert found["kl:valid.jsonl kl"] == expected["kl"]
    assert found["kl:valid.jsonl top1"] == expected["top1"]


def test_a_limit_takes_the_first_rows(subject: Subject, valid: Path, tmp_path: Path) -> None:
    files = {
        "perplexity": valid,
        "last_word": _write(tmp_path / "lambada.jsonl", PASSAGES),
        # What follows the limit is not even read.
        "multiple_choice": _write(tmp_path / "questions.jsonl", [QUESTIONS[0], {"other": 1}]),
        "ifeval": _write(tmp_path / "ifeval.jsonl", INSTRUCTIONS),
    }
    tasks = parse_tasks([f"{kind}:{file}" for kind, file in files.items()])
    found = evaluate(*subject, tasks, limit=1)
    assert {score.n for score in found.values()} == {1}
    first = perplexity_of(text_losses(subject[0], _packed(subject[1])[:1])).score()
    assert found["perplexity:valid.jsonl"] == first


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(subject: Subject, limit: int) -> None:
    with pytest.raises(BadInput, match=f"limit is {limit}, expected 1 or more"):
        evaluate(*subject, [], limit=limit)


def test_kl_is_left_out_without_a_teacher(subject: Subject, valid: Path) -> None:
    tasks = parse_tasks([f"kl:{valid}", f"perplexity:{valid}"])
    assert list(evaluate(*subject, tasks)) == ["perplexity:valid.jsonl"]


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_the_model_is_evaluated_in_eval_mode_and_restored(
    subject: Subject, valid: Path, tmp_path: Path, training: bool
) -> None:
    model, seen = subject[0], list[bool]()
    bad = _write(tmp_path / "bad.jsonl", [{"context": "x"}])
    tasks = parse_tasks([f"perplexity:{valid}"])
    try:
        model.train(training)
        evaluate(*subject, tasks, progress=lambda _: seen.append(model.training))
        assert model.training is training
        with pytest.raises(BadInput):
            evaluate(*subject, parse_tasks([f"last_word:{bad}"]))
        assert model.training is training
    finally:
        model.eval()
    assert set(seen) == {False}


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        (
            "last_word",
            {"context": "Why", "word": "so"},
            r"expected a field `target` \(str\) among context, target; found context, word",
        ),
        ("last_word", {"context": 3, "target": "so"}, r"expected a field `context` \(str\)"),
        ("last_word", {}, "expected a field `context` .* found none"),
        ("last_word", ["Why", "so"], "expected a JSON object, found list"),
        (
            "multiple_choice",
            {**QUESTIONS[0], "answer": "2"},
            r"expected a field `answer` \(int\) among question, choices, answer; found",
        ),
        (
            "multiple_choice",
            {**QUESTIONS[0], "choices": "abc"},
            r"expected a field `choices` \(list\)",
        ),
        ("ifeval", {"prompt": "Why?"}, r"expected a field `instruction_id_list` \(list\)"),
        ("perplexity", {"body": "Why?"}, "expected"),
    ],
)
def test_a_row_of_another_form_is_named_with_its_line(
    subject: Subject, tmp_path: Path, kind: str, row: Any, message: str
) -> None:
    good = {
        "last_word": PASSAGES[0],
        "multiple_choice": QUESTIONS[0],
        "ifeval": INSTRUCTIONS[0],
        "perplexity": {"text": TEXTS[0]},
    }
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{json.dumps(good[kind])}\n\n{json.dumps(row)}\n")
    with pytest.raises(BadInput, match=f"rows.jsonl:3.*{message}"):
        evaluate(*subject, parse_tasks([f"{kind}:{file}"]))


@pytest.mark.parametrize("kind", ["last_word", "multiple_choice", "ifeval", "perplexity"])
def test_a_line_that_is_not_json_is_named(subject: Subject, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n{'context': 1}\n")
    with pytest.raises(BadInput, match=r"rows\.jsonl:2 is not JSON: Expecting property name"):
        evaluate(*subject, parse_tasks([f"{kind}:{file}"]))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("last_word", "rows.jsonl holds no rows"),
        ("multiple_choice", "rows.jsonl holds no rows"),
        ("ifeval", "rows.jsonl holds no rows"),
        ("perplexity", "too little data: 0 documents"),
    ],
)
def test_an_empty_file_is_refused(
    subject: Subject, tmp_path: Path, kind: str, message: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n \n")
    with pytest.raises(BadInput, match=message):
        evaluate(*subject, parse_tasks([f"{kind}:{file}"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": 3}, "question 2 has answer 3, expected an index of its 3 choices, from 0"),
        ({"answer": -1}, "question 2 has answer -1, expected an index of its 3 choices, from 0"),
        ({"choices": []}, "question 2 has answer 2, expected an index of its 0 choices"),
        (
            {"choices": ["so", "", "it is"]},
            r"question 2 has the choices \['so', '', 'it is'\], expected non-empty texts",
        ),
        (
            {"choices": [1, 2, 3]},
            r"question 2 has the choices \[1, 2, 3\], expected non-empty texts",
        ),
        # One of three pairs a question: the first of question 2 is the fourth.
        ({"question": ""}, "pair 4 has 0 tokens of context"),
    ],
)
def test_senseless_questions_are_refused(
    subject: Subject, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    file = _write(tmp_path / "questions.jsonl", [QUESTIONS[0], {**QUESTIONS[0], **changes}])
    with pytest.raises(BadInput, match=message):
        evaluate(*subject, parse_tasks([f"multiple_choice:{file}"]))


def test_files_may_be_gzipped(subject: Subject, tmp_path: Path) -> None:
    plain = _write(tmp_path / "lambada.jsonl", PASSAGES)
    packed = tmp_path / "lambada.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    found = evaluate(*subject, parse_tasks([f"last_word:{plain}", f"last_word:{packed}"]))
    for name in ("accuracy", "perplexity"):
        assert (
            found[f"last_word:lambada.jsonl {name}"] == found[f"last_word:lambada.jsonl.gz {name}"]
        )


@pytest.mark.parametrize(
    "content", [b"no gzip at all", gzip.compress(b"{}" * 99)[:-9]], ids=["not-gzip", "cut"]
)
def test_a_damaged_file_is_named(subject: Subject, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "lambada.jsonl.gz"
    file.write_bytes(content)
    with pytest.raises(BadInput, match=r"lambada\.jsonl\.gz cannot be read: "):
        evaluate(*subject, parse_tasks([f"last_word:{file}"]))
