"""What the tests of tasks share."""

from typing import Any

import pytest

from tests.compress.tokenizers import tiny_fast_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_fast_tokenizer()
