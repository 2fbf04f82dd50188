"""The chat template of a bundle, with the special tokens that it may write."""

from pathlib import Path

from edgelm.bundle import Manifest, bundle_file
from edgelm.checkpoint.special_token_names import SPECIAL_TOKENS_FILE
from edgelm.runtime.generation.generation_config import GenerationConfig
from edgelm.runtime.text.chat import ChatTemplate
from edgelm.runtime.text.special_tokens import read_special_tokens
from edgelm.runtime.text.tokenizer import Tokenizer

CHAT_TEMPLATE = "chat_template.jinja"


def read_template(
    folder: Path, manifest: Manifest, config: GenerationConfig, tokenizer: Tokenizer
) -> ChatTemplate | None:
    """Read it; None if the bundle has none."""
    path = bundle_file(folder, manifest, CHAT_TEMPLATE)
    if path is None:
        return None
    named = read_special_tokens(bundle_file(folder, manifest, SPECIAL_TOKENS_FILE))
    return ChatTemplate(path, special_tokens=special_texts(named, config, tokenizer))


def special_texts(
    named: dict[str, str] | None, config: GenerationConfig, tokenizer: Tokenizer
) -> dict[str, str]:
    """The special tokens of a bundle by name; those of its ids where no file names them."""
    if named is not None:
        return named
    return {name: tokenizer.token(token) or "" for name, token in config.special_tokens().items()}
