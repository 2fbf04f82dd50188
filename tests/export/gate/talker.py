"""A tiny chat model that is a table: every token is followed by the end of the turn at times."""

from pathlib import Path

from tests.checkpoints.tiny_chat import VOCAB, save_tiny_chat
from tests.compress.bigram import bigram

END = 3  # <|end|>


def save_talker(folder: Path, *, end: float = 0.2) -> Path:
    """Save it as a source folder; an answer ends after 1 / end tokens on average."""
    save_tiny_chat(folder)
    bigram({(token, END): end for token in range(VOCAB)}).save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 3, "bos_token_id": 1}')
    return folder
