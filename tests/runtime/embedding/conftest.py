"""A bundle of a tiny embedding model in fp32, built once per process."""

from pathlib import Path

import pytest

from edgelm.export.pipeline import export_model
from tests.checkpoints.sentence_folders import save_sentence_model


@pytest.fixture(scope="session")
def sentence_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its source."""
    return save_sentence_model(tmp_path_factory.mktemp("sentences") / "source")


@pytest.fixture(scope="session")
def embedding_bundle(sentence_model: Path) -> Path:
    """The bundle."""
    bundle = sentence_model.parent / "bundle"
    export_model(sentence_model, bundle, precision="fp32", gate="off")
    return bundle
