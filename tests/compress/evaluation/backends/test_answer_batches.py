"""How many answers of a checkpoint are generated at a time, and that it changes none."""

from collections.abc import Sequence
from typing import Any

import pytest

from edgelm.compress.evaluation.backend import Conversation
from edgelm.compress.evaluation.backends import student_generation
from edgelm.compress.evaluation.backends.student_backend import StudentBackend
from edgelm.compress.model import load_model, load_tokenizer
from edgelm.compress.synthesis.sampling import sample
from tests.checkpoints.tiny_chat import save_tiny_chat

ASKED = [Conversation.of_user("Why is the sky blue? " * (1 + number % 3)) for number in range(26)]


@pytest.fixture(scope="module")
def model_and_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    source = save_tiny_chat(tmp_path_factory.mktemp("batches") / "tiny")
    return load_model(source), load_tokenizer(source)


def test_more_at_a_time_where_the_cache_is_small(
    model_and_tokenizer: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = list[int]()

    def counted(model: Any, prompts: Sequence[Any], *rest: Any, **options: Any) -> Any:
        sizes.append(len(prompts))
        return sample(model, prompts, *rest, **options)

    monkeypatch.setattr(student_generation, "sample", counted)
    backend = StudentBackend(*model_and_tokenizer)
    many = backend.generate(ASKED, 5)
    assert sizes == [24, 2]
    sizes.clear()
    monkeypatch.setattr(student_generation, "_LARGE_BATCH_BYTES", 1000)
    assert backend.generate(ASKED, 5) == many
    assert sizes == [8, 8, 8, 2]
    sizes.clear()
    assert StudentBackend(*model_and_tokenizer, batch_size=13).generate(ASKED, 5) == many
    assert sizes == [13, 13]
    assert backend.generate([], 5) == []
