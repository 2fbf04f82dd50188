"""A tiny model with everything the runtime reads, exported once a session."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edgelm
from edgelm.runtime import LanguageModel


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder; greedy decoding of it does not fall into repeating one token."""
    from tests.tiny_bundle import save_lively

    return save_lively(tmp_path_factory.mktemp("runtime-source"))


@pytest.fixture(scope="session")
def hf(source: Path) -> Any:
    """The same model as transformers runs it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(source).eval()


@pytest.fixture(scope="session")
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its fp32 bundle; read it, never change it. EDGELM_TEST_BUNDLE may name one written before."""
    if written := os.environ.get("EDGELM_TEST_BUNDLE"):
        return Path(written)
    from edgelm.export.pipeline import export_model

    source = request.getfixturevalue("source")
    folder = tmp_path_factory.mktemp("runtime") / "bundle"
    export_model(source, folder, precision="fp32")
    return folder


@pytest.fixture
def lm(bundle: Path) -> Iterator[LanguageModel]:
    """The bundle, loaded: nothing of an earlier test is in its cache."""
    with edgelm.load(bundle, threads=1) as model:
        yield model
