"""A tiny bundle to mutate, and everything that it answers."""

import copy
from pathlib import Path
from typing import Any

import edgelm
from edgelm.export.pipeline import export_model
from tests.checkpoints.tiny_chat import save_tiny_chat

PROMPT = "The miller waits until the level outside has dropped below the wheel."
CONVERSATION: list[Any] = [{"role": "user", "content": "Why is the sky blue?"}]
Answers = tuple[Any, ...]


def write_bundle(folder: Path) -> Path:
    """Export a tiny chat model for a CPU; returns the bundle."""
    source = save_tiny_chat(folder / "source")
    export_model(source, folder / "bundle", precision="int8", gate="off")
    return folder / "bundle"


def answers_of(bundle: Path) -> Answers:
    """Load a bundle; tokens and log-probabilities of a prompt and of a conversation."""
    with edgelm.load(bundle, threads=1) as model:
        first = model.generate(PROMPT, max_tokens=4, logprobs=3)
        second = model.generate(copy.deepcopy(CONVERSATION), max_tokens=4, logprobs=3, seed=1)
        # Not the timings, which are different each time.
        return first.chunks, second.chunks, model.context
