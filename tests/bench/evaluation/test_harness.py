"""An fp32 bundle in lm-evaluation-harness gives, per document, what transformers gives."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edgelm
from edgelm.bench.evaluation import harness
from edgelm.bench.evaluation.bundle.backend import BundleBackend
from edgelm.compress.model import load_model, load_tokenizer
from edgelm.errors import BadInput, MissingPackage

ROOT = Path(__file__).resolve().parents[3]
TASKS = ("cities", "proverbs", "counting")


@pytest.fixture(scope="module")
def backend(bundle: Path) -> Iterator[BundleBackend]:
    with edgelm.load(bundle, threads=1) as model:
        yield BundleBackend(model)


@pytest.fixture(scope="module")
def samples(backend: BundleBackend, source: Path) -> dict[str, dict[str, Any]]:
    """Samples by model and task."""
    pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'lm-eval>=0.4.10'")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tokenizer = load_tokenizer(source)
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "<|end|>"
    backend.tokenizer.bos_token_id, backend.tokenizer.eos_token_id = 1, 3
    models = {
        "bundle": harness.harness_model(backend),
        "transformers": HFLM(
            pretrained=load_model(source), tokenizer=copy.deepcopy(tokenizer), batch_size=4
        ),
    }
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # the files name their data from the repository's root
        for name, model in models.items():
            manager = TaskManager(include_path="docs/tasks", include_defaults=False)
            results = simple_evaluate(
                model=model, tasks=list(TASKS), task_manager=manager, log_samples=True
            )
            found[name] = results["samples"]
    return found


@pytest.mark.parametrize("task", TASKS)
def test_each_document_is_answered_alike(samples: dict[str, dict[str, Any]], task: str) -> None:
    pairs = list(zip(samples["bundle"][task], samples["transformers"][task], strict=True))
    assert len(pairs) >= 8
    for ours, theirs in pairs:
        assert ours["doc_hash"] == theirs["doc_hash"]
        if task == "counting":
            assert ours["resps"] == theirs["resps"]
            continue
        for one, other in zip(_numbers(ours["resps"]), _numbers(theirs["resps"]), strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-4)


def _numbers(responses: Any) -> list[float]:
    """Log-likelihoods, and whether they are greedy, however deep they are nested."""
    if isinstance(responses, list | tuple):
        return [number for one in responses for number in _numbers(one)]
    return [float(str(responses) == "True" if str(responses) in ("True", "False") else responses)]


def test_without_the_package_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(MissingPackage, match="pip install 'lm-eval"):
        harness.model_class()


def test_without_a_bundle_nothing_is_loaded() -> None:
    with pytest.raises(BadInput, match="--model_args bundle=DIR"):
        harness.HarnessRequests()
