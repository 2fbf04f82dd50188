"""Tiny models with int8 weights and cache, as a CPU runs them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import edgelm
from edgelm.runtime import LanguageModel
from edgelm.runtime.speculation.speculator import SpeculationState
from tests.checkpoints.tiny_chat import save_tiny_chat

CONTEXT = 512


@pytest.fixture(scope="session", params=["llama", "lfm2", "qwen3.5"])
def int8_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgelm.export.pipeline import export_model

    folder = tmp_path_factory.mktemp(f"speculation-{request.param}")
    source = save_tiny_chat(folder / "source", request.param, context=CONTEXT)
    export_model(source, folder / "bundle", precision="int8", gate="off")
    return folder / "bundle"


@pytest.fixture(scope="session")
def _loaded(int8_bundle: Path) -> Iterator[LanguageModel]:
    with edgelm.load(int8_bundle, threads=1, sequences=2) as lm:
        yield lm


@pytest.fixture
def int8_lm(_loaded: LanguageModel, drafts_pay: None) -> LanguageModel:
    """Nothing of an earlier test is in its caches, and what can be drafted is."""
    _forget(_loaded)
    return _loaded


def _forget(lm: LanguageModel) -> None:
    lm._sequences.speculation = SpeculationState()
    for slot in lm._sequences.slots:
        slot.session.rewind(0)
