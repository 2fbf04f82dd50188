"""Logits of a graph with an adapter bound to it, against those of peft."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgelm.quantize.precision import Int8
from tests.conftest import TinyFactory

pytest.importorskip("peft", reason="peft is not installed")
from tests.export.adapters.bundles import Adapted, adapted_session, peft_adapter

TOKENS = np.arange(3, 40)
PROMPT = 30
# One with fused projections, one with biases, norms of queries, windows, convolutions, factors that
# are folded into weights, an output gate, rows in another order.
MODELS = ["llama-untied", "phi3", "qwen3", "gemma3", "lfm2", "granite"]
# peft adapts no projection that a fused Mamba kernel would take.
_PARTS = ["q_proj", "k_proj", "v_proj", "o_proj", "in_proj", "gate_proj", "up_proj", "down_proj"]
# And no product takes the small matrices of AltUp's routers, which are in no group.
_STREAMS = r".*\.(\w+_proj|per_layer\w*(projection|gate)|linear_\w+|altup_\w+\.\d)"
EVERY: dict[str, dict[str, Any]] = {
    "falcon-h1": {"target_modules": _PARTS},
    "gemma3n": {"target_modules": _STREAMS},
}
OTHERS = [
    "qwen3.5",
    "falcon-h1",
    "gemma3n",
    "gemma4",
    "ernie4.5",
    "glm4",
    "olmo2",
    "apertus",
    "granite-hybrid",
    "qwen2",
    "stablelm",
    "stablelm-parallel",
    "starcoder2",
    "cohere2",
    "gpt-neox",
    "phi",
    "llama",
]


def adapters_of(folder: Path, model: str) -> dict[str, Any]:
    """Two adapters of different ranks and modules, as peft runs them."""
    fused = {"phi3": ["qkv_proj"], "gpt-neox": ["query_key_value"]}
    names = fused.get(model, ["q_proj", "v_proj"])
    return {
        "all": peft_adapter(folder / "all", model, **EVERY.get(model, {})),
        "few": peft_adapter(
            folder / "few",
            model,
            seed=1,
            r=7,
            use_rslora=True,
            target_modules=names,
            layers_to_transform=[1],
        ),
    }


def logits(adapted: Adapted, name: str | None) -> torch.Tensor:
    """Of a prompt in chunks, and of what follows it token by token."""
    session = adapted.session
    session.use_adapter(adapted.adapters.find(name))
    session.rewind(0)
    rows = [session.advance(TOKENS[:PROMPT], logits=PROMPT).copy()]
    rows += [session.advance(TOKENS[at : at + 1]).copy() for at in range(PROMPT, len(TOKENS))]
    return torch.from_numpy(np.concatenate(rows))


def expected(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.from_numpy(TOKENS)[None]).logits[0]
    return found


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize(
    "model", [*MODELS, *(pytest.param(one, marks=pytest.mark.slow) for one in OTHERS)]
)
def test_logits_are_those_of_peft(tiny: TinyFactory, tmp_path: Path, model: str) -> None:
    peft_models = adapters_of(tmp_path, model)
    folders = {name: tmp_path / name for name in peft_models}
    adapted = adapted_session(tiny(model).checkpoint, tmp_path / "graph", folders)
    with adapted.session:
        found = {name: logits(adapted, name) for name in ("all", "few", None, "all")}
        base = expected(tiny(model).hf)
        assert distance(found[None], base) <= 1e-4
        for name, one in peft_models.items():
            assert distance(found[name], expected(one)) <= 1e-4
            assert distance(found[name], base) > 0.01


def test_beside_quantized_weights(tiny: TinyFactory, tmp_path: Path) -> None:
    """An adapter changes logits as much as in peft, whatever rounding does to the base."""
    peft_models = adapters_of(tmp_path, "llama-untied")
    folders = {name: tmp_path / name for name in peft_models}
    checkpoint = tiny("llama-untied").checkpoint
    adapted = adapted_session(checkpoint, tmp_path / "graph", folders, Int8(group_size=32))
    with adapted.session:
        plain, base = logits(adapted, None), expected(tiny("llama-untied").hf)
        for name, one in peft_models.items():
            wanted = expected(one) - base
            change = logits(adapted, name) - plain
            strength = float((change * wanted).sum() / (wanted * wanted).sum())
            assert strength == pytest.approx(1, abs=0.1)
