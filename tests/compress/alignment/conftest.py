import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from edgelm.compress.model import load_model
from tests.compress.alignment.examples import UNMARKED, Write


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / "data.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return path

    return write


@pytest.fixture
def student(tiny_chat: Path) -> Any:
    return load_model(tiny_chat)


@pytest.fixture
def tokenizer(tiny_chat: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(tiny_chat)
    tokenizer.chat_template = UNMARKED
    return tokenizer
