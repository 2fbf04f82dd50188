"""lm-eval is no dependency: results recorded from 0.4.13, a stand-in, and the package if there."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from edgelm.compress.evaluation.backends.student_backend import StudentBackend
from edgelm.compress.evaluation.evaluate import evaluate
from edgelm.compress.evaluation.task_names import Task
from edgelm.compress.evaluation.tasks import lm_eval
from edgelm.compress.evaluation.tasks.lm_eval import scores_of
from edgelm.compress.evaluation.tasks.multiple_choice import Question, multiple_choice
from edgelm.compress.evaluation.tasks.scores import Score
from edgelm.errors import BadInput, MissingPackage, UnknownName
from tests.checkpoints.models import tiny_model
from tests.checkpoints.tiny_chat import VOCAB
from tests.compress.tokenizers import tiny_fast_tokenizer

# Of a group of two local tasks; the group averages `acc`, which only one of them has.
GROUP: dict[str, Any] = {
    "results": {
        "own_choice": {
            "name": "own_choice",
            "alias": "own_choice",
            "sample_len": 20,
            "acc,none": 0.35,
            "acc_stderr,none": 0.1094243309804831,
            "acc_norm,none": 0.3,
            "acc_norm_stderr,none": 0.10513149660756933,
        },
        "own_gen": {
            "name": "own_gen",
            "alias": "own_gen",
            "sample_len": 20,
            "exact_match,strict": 0.0,
            "exact_match_stderr,strict": 0.0,
            "exact_match,flexible": 0.1,
            "exact_match_stderr,flexible": 0.06,
        },
        "own_group": {
            "alias": "own_group",
            "name": "own_group",
            "sample_len": 40,
            "acc,none": 0.35,
            "acc_stderr,none": 0.1094243309804831,
            "sample_count": {"acc,none": 20},
        },
    },
    "higher_is_better": {
        "own_choice": {"acc": True, "acc_norm": True},
        "own_gen": {"exact_match": True},
        "own_group": {"acc": True, "acc_norm": True, "exact_match": True},
    },
    "n-samples": {
        "own_choice": {"original": 20, "effective": 20},
        "own_gen": {"original": 20, "effective": 16},
    },
}
PERPLEXITY: dict[str, Any] = {
    "results": {
        "own_perplexity": {
            "name": "own_perplexity",
            "alias": "own_perplexity",
            "sample_len": 5,
            "word_perplexity,none": 42.5,
            "word_perplexity_stderr,none": "N/A",
        }
    },
    "higher_is_better": {"own_perplexity": {"word_perplexity": False}},
    "n-samples": {"own_perplexity": {"original": 9, "effective": 5}},
}
YAML = """
task: own_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {questions}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
QUESTIONS = [
    {
        "question": f"Why is the sky number {number}? Because",
        "choices": ["blue", "the wheel turns", "small molecules", "a gate"][: 3 + number % 2],
        "answer": number % 3,
    }
    for number in range(12)
]


class Harness:
    """What `lm_eval` offers of its own, noting how it is called."""

    def __init__(self, results: dict[str, Any] | Exception) -> None:
        self.results = results
        self.manager: dict[str, Any] = {}
        self.wrapped: dict[str, Any] = {}
        self.call: dict[str, Any] = {}

    def task_manager(self, **given: Any) -> Any:
        self.manager = given
        manager: Any = ModuleType("manager")
        manager.all_tasks = ["hellaswag", "own_choice", "own_gen", "own_group"]
        return manager

    def hflm(self, **given: Any) -> str:
        self.wrapped = given
        given["tokenizer"].pad_token = "</s>"
        return "wrapped"

    def simple_evaluate(self, **given: Any) -> dict[str, Any]:
        self.call = given
        self.wrapped["pretrained"].eval()
        if isinstance(self.results, Exception):
            raise self.results
        return self.results


def _install(monkeypatch: pytest.MonkeyPatch, results: dict[str, Any] | Exception) -> Harness:
    harness = Harness(results)
    modules: dict[str, Any] = {
        name: ModuleType(name)
        for name in ("lm_eval", "lm_eval.tasks", "lm_eval.models", "lm_eval.models.huggingface")
    }
    modules["lm_eval"].simple_evaluate = harness.simple_evaluate
    modules["lm_eval.tasks"].TaskManager = harness.task_manager
    modules["lm_eval.models.huggingface"].HFLM = harness.hflm
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return harness


def lm_eval_task(
    model: Any, tokenizer: Any, name: str, *, limit: int | None = None, batch_size: int = 8
) -> dict[str, Score]:
    backend = StudentBackend(model, tokenizer, batch_size=batch_size)
    return lm_eval.lm_eval_task(backend, name, limit=limit)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama", vocab_size=VOCAB)


def test_without_lm_eval_the_message_says_what_to_install(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    message = r"need lm-eval \(.*lm_eval.*\): pip install 'lm-eval>=0\.4\.10'"
    with pytest.raises(MissingPackage, match=message):
        lm_eval_task(model, tiny_fast_tokenizer(), "hellaswag")


def test_scores_of_a_group_and_its_tasks() -> None:
    found = scores_of(GROUP, "own_group")
    assert list(found) == [
        "own_choice acc",
        "own_choice acc_norm",
        "own_gen exact_match,strict",
        "own_gen exact_match,flexible",
        "acc",
    ]
    # Over the 20 items of the task that has it, not over all 40.
    assert found["acc"] == Score(0.35, 0.1094243309804831, 20, "higher", is_share=True)
    assert found["own_choice acc"] == Score(0.35, 0.1094243309804831, 20, "higher", is_share=True)
    assert found["own_gen exact_match,flexible"] == Score(0.1, 0.06, 16, "higher", is_share=True)


def test_metrics_that_reach_to_100_are_not_shares() -> None:
    values = {"bleu,none": 0.8, "acc_norm,none": 0.4, "f1,none": 0.3, "mcc,none": 0.2}
    found = scores_of(
        {
            "results": {"own": values},
            "higher_is_better": {"own": dict.fromkeys(("bleu", "acc_norm", "f1", "mcc"), True)},
            "n-samples": {"own": {"effective": 9}},
        },
        "own",
    )
    assert {name for name, one in found.items() if one.is_share} == {"acc_norm", "f1"}


def test_an_error_that_was_not_estimated_is_none_and_less_can_be_better() -> None:
    assert scores_of(PERPLEXITY, "own_perplexity") == {
        "word_perplexity": Score(42.5, None, 5, "lower")
    }


def test_a_local_task_is_looked_for_in_its_folder_alone(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = _install(monkeypatch, PERPLEXITY)
    lm_eval_task(model, tiny_fast_tokenizer(), "some/tasks/own_gen", limit=3, batch_size=2)
    assert harness.manager == {"include_path": "some/tasks", "include_defaults": False}
    assert (harness.call["tasks"], harness.call["limit"]) == (["own_gen"], 3)
    assert harness.wrapped["batch_size"] == 2


def test_a_task_of_the_harness_is_looked_for_among_its_own(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = _install(monkeypatch, PERPLEXITY)
    lm_eval_task(model, tiny_fast_tokenizer(), "hellaswag")
    assert harness.manager == {"include_path": None, "include_defaults": True}
    assert (harness.call["tasks"], harness.call["limit"]) == (["hellaswag"], None)


def test_model_tokenizer_and_random_state_stay_as_they_are(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness, tokenizer = _install(monkeypatch, GROUP), tiny_fast_tokenizer()
    model.train()
    evaluate(model, tokenizer, [Task("lm-eval", "own_group")])
    assert model.training
    assert harness.wrapped["pretrained"] is model
    assert tokenizer.pad_token == "<pad>"
    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed")
    assert [harness.call[seed] for seed in seeds] == [None] * 3
    model.eval()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "tasks/other",
            "no task 'other' in tasks; its YAML files hold: hellaswag, own_choice, own_gen,",
        ),
        ("helaswag", "lm-eval has no task 'helaswag'; did you mean hellaswag?"),
        ("qqq", "lm-eval has no task 'qqq'; it has 4 tasks"),
    ],
)
def test_an_unknown_task_names_what_there_is(
    model: Any, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    _install(monkeypatch, GROUP)
    with pytest.raises(UnknownName) as raised:
        lm_eval_task(model, tiny_fast_tokenizer(), name)
    assert str(raised.value).startswith(message)


def test_data_that_cannot_be_loaded_is_named(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, FileNotFoundError("no such data set"))
    model.train()
    message = "lm-eval cannot load the data of task 'hellaswag': no such data set"
    with pytest.raises(BadInput, match=message):
        evaluate(model, tiny_fast_tokenizer(), [Task("lm-eval", "hellaswag")])
    assert model.training
    model.eval()


def test_a_tokenizer_without_a_first_token_is_refused(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(monkeypatch, GROUP)
    tokenizer = tiny_fast_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(
        BadInput, match="this tokenizer has neither; set its `bos_token` or `eos_token`"
    ):
        lm_eval_task(model, tokenizer, "hellaswag")


def test_evaluate_puts_the_task_before_the_metric(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = _install(monkeypatch, PERPLEXITY)
    task = Task("lm-eval", "tasks/own_perplexity")
    with pytest.raises(UnknownName, match="no task 'own_perplexity' in tasks"):
        evaluate(model, tiny_fast_tokenizer(), [task])
    found = evaluate(model, tiny_fast_tokenizer(), [Task("lm-eval", "own_gen")], limit=7)
    assert list(found) == ["lm-eval:own_gen own_perplexity word_perplexity"]
    assert harness.call["limit"] == 7


def test_the_real_package_agrees_with_ours_on_a_local_task(model: Any, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'lm-eval>=0.4.10'")
    questions = tmp_path / "questions.jsonl"
    questions.write_text("\n".join(map(json.dumps, QUESTIONS)))
    text = YAML.format(questions=questions, cache=tmp_path / "cache")
    (tmp_path / "own.yaml").write_text(text)
    tokenizer, state = tiny_fast_tokenizer(), torch.get_rng_state()
    found = lm_eval_task(model, tokenizer, f"{tmp_path}/own_choice", batch_size=5)
    asked = [Question(q["question"], tuple(q["choices"]), q["answer"]) for q in QUESTIONS]  # type: ignore[arg-type]
    ours = multiple_choice(StudentBackend(model, tokenizer), asked)
    assert found.keys() == {"acc", "acc_norm"}
    assert found["acc"].value == pytest.approx(ours["accuracy"].mean)
    assert found["acc_norm"].value == pytest.approx(ours["accuracy_norm"].mean)
    assert found["acc"].n == 12
    assert torch.equal(torch.get_rng_state(), state)
    few = lm_eval_task(model, tokenizer, f"{tmp_path}/own_choice", limit=4)
    assert few["acc"].n == 4
    with pytest.raises(UnknownName, match="its YAML files hold: own_choice"):
        lm_eval_task(model, tokenizer, f"{tmp_path}/other")
