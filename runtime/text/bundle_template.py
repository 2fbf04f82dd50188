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
    names = read_special_tokens(bundle_file(folder, manifest, SPECIAL_TOKENS_FILE))
    if names is None:  # a bundle without the file
        names = {
            name: tokenizer.token(token) or "" for name, token in config.special_tokens().items()
        }
    return ChatTemplate(path, special_tokens=names)
