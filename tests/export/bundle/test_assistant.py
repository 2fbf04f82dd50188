"""The assistant of a Gemma 4 in the bundle of its model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgelm
from edgelm.export.pipeline import export_model
from edgelm.runtime import LanguageModel
from edgelm.runtime.speculation.assistant_draft import AssistantDraft
from tests.checkpoints.assistants import TorchAssistant, save_assistant
from tests.checkpoints.tiny_chat import save_tiny_chat

CONTEXT = 256
HISTORY: list[int] = np.random.default_rng(0).integers(4, 320, 40).tolist()
SHARED = {"vocab_size_per_layer_input": 320}
# name -> (model, centroids)
KINDS: dict[str, tuple[str, dict[str, Any], tuple[int, int] | None]] = {
    "shared": ("gemma4", SHARED, None),
    "dense": ("gemma4-dense", {}, None),
    "centroids": ("gemma4", SHARED, (16, 3)),
}


def save(folder: Path, kind: str = "shared", **over: Any) -> tuple[Path, Path]:
    """A model and its assistant."""
    name, own, centroids = KINDS[kind]
    model = save_tiny_chat(folder / "model", name, context=CONTEXT, **own)
    return model, save_assistant(folder / "assistant", model, centroids=centroids, **over)


def logits(lm: LanguageModel, history: list[int], count: int) -> Any:
    """Logits [count, vocab_size] of what a bundle's assistant drafts behind a history."""
    draft = lm._sequences.slots[0].draft
    assert isinstance(draft, AssistantDraft)
    lm.session.rewind(0)
    lm.session.advance(np.array(history[:-1]))
    past, model = len(history) - 1, draft._model
    runs = draft._engine.runs(past, model.loaded[1], model.read_rows(CONTEXT))
    assert model.hidden is not None
    hidden, token, found = model.hidden.rows(past - 1, past), history[-1], []
    for number in range(count):
        found.append(runs.run(token, None if number else hidden).copy())
        token = int(found[-1].argmax())
    return np.stack(found)


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_transformers_does(tmp_path: Path, kind: str) -> None:
    model, assistant = save(tmp_path, kind)
    export_model(model, tmp_path / "b", precision="fp32", gate="none", assistant=assistant)
    theirs = TorchAssistant(model, assistant)
    with edgelm.load(tmp_path / "b", threads=1, speculation="draft") as lm:
        for length in (2, 5, 9, 10, 40):  # windows hold 8 tokens
            expected = theirs.logits(HISTORY[:length], 4).numpy()
            given = logits(lm, HISTORY[:length], 4)
            np.testing.assert_allclose(given, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
