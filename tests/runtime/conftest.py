"""A tiny model with everything the runtime reads, exported once a session."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

import edgelm
from edgelm.export.pipeline import export_model
from edgelm.runtime import LanguageModel
from tests.models import tiny_model
from tests.tiny_chat import CONTEXT, VOCAB, save_tiny_chat


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder; greedy decoding of it does not fall into repeating one token."""
    folder = save_tiny_chat(tmp_path_factory.mktemp("runtime-source"))
    lively = tiny_model("llama-untied", vocab_size=VOCAB, max_position_embeddings=CONTEXT)
    lively.save_pretrained(folder)
    # save_pretrained writes generation defaults too; a turn ends with `<|end|>`.
    (folder / "generation_config.json").write_text('{"eos_token_id": 3, "bos_token_id": 1}')
    return folder


@pytest.fixture(scope="session")
def hf(source: Path) -> Any:
    """The same model as transformers runs it."""
    return AutoModelForCausalLM.from_pretrained(source).eval()


@pytest.fixture(scope="session")
def bundle(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its fp32 bundle; read it, never change it."""
    folder = tmp_path_factory.mktemp("runtime") / "bundle"
    export_model(source, folder, precision="fp32")
    return folder


@pytest.fixture
def lm(bundle: Path) -> Iterator[LanguageModel]:
    """The bundle, loaded: nothing of an earlier test is in its cache."""
    with edgelm.load(bundle, threads=1) as model:
        yield model
