"""Students on disk: what reads them gives the same logits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from edgelm.checkpoint.source import open_checkpoint
from edgelm.compress.model import load_model, save_model
from tests.checkpoints.tiny_chat import VOCAB
from tests.compress.tokenizers import tiny_fast_tokenizer
from tests.export.graphs import build_session


def check_same_everywhere(tmp_path: Path) -> None:
    """Plain transformers, edgelm's reader and the graph give the logits of `student`."""
    tokens = torch.randint(4, VOCAB, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain = AutoModelForCausalLM.from_pretrained(
            tmp_path / "student", dtype=torch.float32, trust_remote_code=False
        ).eval()
        expected = plain(tokens, use_cache=False).logits[0]
        ours = load_model(tmp_path / "student")(tokens, use_cache=False).logits[0]
    atol = 1e-4 * float(expected.abs().max())
    torch.testing.assert_close(ours, expected, rtol=0, atol=atol)
    with build_session(open_checkpoint(tmp_path / "student"), tmp_path / "graph") as session:
        exported = torch.from_numpy(session.advance(tokens[0].numpy(), logits=tokens.shape[1]))
    torch.testing.assert_close(exported, expected, rtol=0, atol=atol)


def check_saves(student: Any, folder: Path, logits: Callable[[Any], torch.Tensor]) -> None:
    """Plain transformers and edgelm's reader load a student as it was, to the bit."""
    save_model(student, tiny_fast_tokenizer(), folder, torch.float32)
    loaded = AutoModelForCausalLM.from_pretrained(
        folder,
        attn_implementation=student.config._attn_implementation,
        trust_remote_code=False,
    ).eval()
    assert torch.equal(logits(loaded), logits(student))
    assert torch.equal(logits(load_model(folder)), logits(student))
