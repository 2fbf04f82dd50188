"""Mamba-2 in chunks is the recurrence token by token, however the tokens are cut."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import DynamicCache

from edgelm.checkpoint.source import open_checkpoint
from edgelm.export.source.reference import Reference
from edgelm.runtime.engines.session import Session
from tests.checkpoints.models import save_tiny
from tests.conftest import Tiny
from tests.export.graph.test_parity import assert_close
from tests.export.graphs import build_session

LENGTH = 160  # of the context, of a run, and of two and a half of the graph's chunks of 64
TOKENS = np.random.default_rng(0).integers(3, 128, LENGTH)
TWO: dict[str, Any] = {
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "max_position_embeddings": 2 * LENGTH,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "two groups, all biases": {},
    "one group, no bias": {
        "mamba_n_groups": 1,
        "mamba_conv_bias": False,
        "mamba_proj_bias": False,
    },
    "a group for each head, rotated": {
        "mamba_n_groups": 8,
        "position_embedding_type": "rope",
        "mamba_d_conv": 2,
    },
}


@pytest.fixture(scope="module", params=VARIANTS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("mamba")
    model = save_tiny("granite-hybrid", folder, **TWO, **VARIANTS[request.param])
    return Tiny(folder, model, open_checkpoint(folder))


@pytest.fixture(scope="module")
def expected(source: Tiny) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        return source.hf(torch.from_numpy(TOKENS)[None]).logits[0].numpy()  # type: ignore[no-any-return]


@pytest.fixture(scope="module", params=["ort", "standard", "decomposed"])
def loaded(
    source: Tiny, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("graph")
    dialect = request.param
    with build_session(
        source.checkpoint, folder, dialect=dialect, chunk=LENGTH, context=LENGTH
    ) as session:
        yield session


@pytest.mark.parametrize("first", [1, 2, 63, 64, 65, 127, 128, 160], ids="first-{}".format)
def test_runs_of_any_length(loaded: Session, expected: npt.NDArray[np.float32], first: int) -> None:
    loaded.rewind(0)
    rows = [loaded.advance(TOKENS[:first], logits=first).copy()]
    if first < LENGTH:
        rows.append(loaded.advance(TOKENS[first:], logits=LENGTH - first).copy())
    assert_close(np.concatenate(rows), expected)


def test_a_hundred_tokens_are_chosen_alike(source: Tiny, loaded: Session) -> None:
    assert_same_choices(source.hf, loaded)


@pytest.mark.parametrize("name", ["nemotron-h", "falcon-h1", "falcon-h1-norm"])
@pytest.mark.parametrize(
    "dialect",
    [
        "ort",
        pytest.param("standard", marks=pytest.mark.slow),
        pytest.param("decomposed", marks=pytest.mark.slow),
    ],
)
def test_a_hundred_tokens_of_other_families(tmp_path: Path, name: str, dialect: Any) -> None:
    model = save_tiny(name, tmp_path / "model", max_position_embeddings=2 * LENGTH)
    checkpoint, folder = open_checkpoint(tmp_path / "model"), tmp_path / "graph"
    with build_session(
        checkpoint, folder, dialect=dialect, chunk=LENGTH, context=LENGTH
    ) as session:
        assert_same_choices(model, session)


def assert_same_choices(model: Any, session: Session) -> None:
    """A hundred tokens chosen greedily after a prompt of 20."""
    prompt = TOKENS[:20]
    session.rewind(0)
    logits, ours = session.advance(prompt)[0], []
    for _ in range(100):
        ours.append(int(logits.argmax()))
        logits = session.advance(np.array(ours[-1:]))[0]
    with torch.inference_mode():
        theirs = model.generate(
            torch.from_numpy(prompt)[None],
            max_new_tokens=100,
            min_new_tokens=100,
            do_sample=False,
            eos_token_id=None,
        )
    assert ours == theirs[0, 20:].tolist()


@pytest.mark.parametrize("first", [1, 20, 64])
def test_steps_of_prompts_are_those_of_single_tokens(tmp_path: Path, first: int) -> None:
    """Nemotron-H's class limits dt in prompts only; the graph and the reference never do."""
    model = save_tiny("nemotron-h", tmp_path / "model", time_step_min=0.001)
    tokens, cache = torch.from_numpy(TOKENS[:64])[None], DynamicCache(config=model.config)
    limited = [one for one in model.modules() if hasattr(one, "time_step_limit")]
    with torch.inference_mode():
        prompt, single = model(tokens).logits[0].numpy(), []
        for at in range(64):  # the class takes the first token for a prompt
            for module in limited:
                module.time_step_limit = (0.001 if at else 0.0, float("inf"))
            logits = model(tokens[:, at : at + 1], past_key_values=cache).logits
            single.append(logits[0, 0].numpy())
    expected = np.stack(single)
    assert np.abs(prompt - expected).max() > 1e-3 * np.abs(expected).max(), "the limit is reached"
    checkpoint = open_checkpoint(tmp_path / "model")
    reference = Reference(checkpoint)
    hidden = reference.hidden_states(tokens)[0]
    assert_close(reference.logits(hidden, reference.head()).numpy(), expected)
    with build_session(checkpoint, tmp_path / "graph", chunk=64) as session:
        rows = [session.advance(TOKENS[:first], logits=first).copy()]
        if first < 64:
            rows.append(session.advance(TOKENS[first:64], logits=64 - first).copy())
    assert_close(np.concatenate(rows), expected)


def test_large_and_tiny_time_steps(tmp_path: Path) -> None:
    """Steps that forget all, steps that change nothing, and A far from one."""
    model = save_tiny("granite-hybrid", tmp_path / "model", **TWO)
    with torch.no_grad():
        mamba = model.model.layers[0].mamba
        mamba.dt_bias.copy_(torch.tensor([30.0, 8.0, 3.0, 0.0, -3.0, -8.0, -14.0, -30.0]))
        mamba.A_log.copy_(torch.linspace(-4, 4, 8))
    model.save_pretrained(tmp_path / "model")
    with torch.inference_mode():
        expected = model(torch.from_numpy(TOKENS[:64])[None]).logits[0].numpy()
    checkpoint = open_checkpoint(tmp_path / "model")
    for dialect in ("ort", "standard"):
        with build_session(checkpoint, tmp_path / dialect, dialect=dialect) as session:
            assert_close(session.advance(TOKENS[:50], logits=50).copy(), expected[:50])
            rows = [session.advance(TOKENS[at : at + 1])[0].copy() for at in range(50, 64)]
            assert_close(np.stack(rows), expected[50:])
