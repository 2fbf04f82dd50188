"""A tiny chat bundle with two adapters, exported once."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

import edgelm
from edgelm.runtime import LanguageModel
from tests.runtime.adapters.asking import COUNT, OPEN, PROMPT


@pytest.fixture(scope="session")
def adapted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle; read it, never change it."""
    from edgelm.checkpoint.source import open_checkpoint
    from edgelm.export.pipeline import export_model
    from tests.checkpoints.adapters import modules_of, random_factors, save_adapter

    folder, checkpoint = tmp_path_factory.mktemp("adapted"), open_checkpoint(source)
    modules = modules_of(checkpoint)
    few = [name for name in modules if name.endswith(("v_proj", "down_proj"))]
    adapters = {
        "pirate": save_adapter(folder / "a", random_factors(checkpoint, modules)),
        "poet": save_adapter(folder / "b", random_factors(checkpoint, few, rank=2, seed=1), r=2),
    }
    export_model(source, folder / "bundle", precision="fp32", switchable_adapters=adapters)
    return folder / "bundle"


@pytest.fixture(scope="session")
def alone(adapted: Path) -> Callable[..., str]:
    """What an adapter, or none, answers on a model that nobody else uses."""

    @cache
    def text(adapter: str | None, prompt: tuple[int, ...] = PROMPT) -> str:
        with edgelm.load(adapted, threads=1) as lm:
            return generate(lm, adapter, prompt)

    return text


def generate(lm: LanguageModel, adapter: str | None, prompt: tuple[int, ...]) -> str:
    return lm.generate(list(prompt), adapter=adapter, max_tokens=COUNT, logit_bias=OPEN).text
