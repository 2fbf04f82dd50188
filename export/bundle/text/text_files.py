"""The text files of a source: its tokenizer, chat template, special tokens and end tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgelm.checkpoint.gguf.reader import GgufFile
from edgelm.checkpoint.gguf.tokenizer import gguf_tokenizer
from edgelm.checkpoint.source import Checkpoint
from edgelm.errors import BadBundle, BadCheckpoint
from edgelm.export.bundle.text.generation_defaults import (
    eos_with_template,
    generation_defaults,
    token_ids,
)
from edgelm.export.bundle.text.special_tokens import read_optional, special_tokens
from edgelm.files.json_files import read_file, shown
from edgelm.library_errors import library_errors
from edgelm.runtime.text.tokenizer import OF_ONE_CALL, read_parts, without_limits
from edgelm.runtime.text.tokenizer_limits import MAX_BYTES

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MAX_TEMPLATE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class TextFiles:
    """The files of a bundle that concern text.

    `special_tokens` is None where the source names none.
    """

    tokenizer: bytes
    template: str | None
    special_tokens: dict[str, str] | None
    generation: dict[str, Any]


def text_files(checkpoint: Checkpoint) -> TextFiles:
    """Read and check them.

    Raises:
        BadCheckpoint: the source has no fast tokenizer, or a file is damaged.
    """
    return _of_gguf(checkpoint) if checkpoint.is_gguf else _of_folder(checkpoint)


def _of_gguf(checkpoint: Checkpoint) -> TextFiles:
    metadata = GgufFile(checkpoint.path).metadata
    tokenizer, vocabulary = gguf_tokenizer(metadata)
    rows = checkpoint.spec.vocab_size
    if len(vocabulary.tokens) > rows:
        raise BadCheckpoint(
            f"{checkpoint.path}: tokenizer.ggml.tokens has {len(vocabulary.tokens)} tokens, the "
            f"model has embeddings of {rows}; convert the model again"
        )
    generation = generation_defaults(str(checkpoint.path), {}, checkpoint.config)
    if vocabulary.eos_token_ids:
        generation["eos_token_id"] = vocabulary.eos_token_ids
    return TextFiles(
        tokenizer.to_str().encode(),
        metadata.text("tokenizer.chat_template"),
        vocabulary.special_texts(),
        generation,
    )


def _of_folder(checkpoint: Checkpoint) -> TextFiles:
    folder = checkpoint.path
    content = _tokenizer_json(folder)
    tokenizer = _parse(folder / "tokenizer.json", content)
    _check_added_ids(folder / "tokenizer.json", tokenizer, checkpoint.spec.vocab_size)
    template = _template(folder)
    special = special_tokens(folder)
    stored = read_optional(folder / "generation_config.json") or {}
    source = str(folder / "generation_config.json")
    generation = generation_defaults(source, stored, checkpoint.config)
    # Generation, model and tokenizer sometimes name different end tokens; each of them counts.
    eos = token_ids(source, "eos_token_id", stored.get("eos_token_id"))
    config = str(folder / "config.json")
    eos += token_ids(config, "eos_token_id", checkpoint.config.get("eos_token_id"))
    own = (
        tokenizer.token_to_id(special["eos_token"]) if special and "eos_token" in special else None
    )
    eos += [] if own is None else [own]
    added = tokenizer.get_added_tokens_decoder().values()
    eos = eos_with_template(
        template,
        [token.content for token in added if token.special],
        list(dict.fromkeys(eos)),
        tokenizer.token_to_id,
        tokenizer.id_to_token,
    )
    generation.pop("eos_token_id", None)
    if eos:
        generation["eos_token_id"] = eos
    return TextFiles(content, template, special, generation)


def _tokenizer_json(folder: Path) -> bytes:
    """tokenizer.json without what belongs to one call, not to the model."""
    path = folder / "tokenizer.json"
    try:
        content = read_file(path, max_bytes=MAX_BYTES)
    except FileNotFoundError:
        raise BadCheckpoint(
            f"{folder} has no tokenizer.json; write one with transformers: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)" + _needs(folder)
        ) from None
    try:
        parts = read_parts(content)
    except BadBundle as error:
        raise BadCheckpoint(f"{path} is not a tokenizer: {error}; download it again") from None
    null = msgspec.Raw(b"null")
    if all(parts.get(name, null) == null for name in OF_ONE_CALL):
        return content
    return without_limits(parts)


def _needs(folder: Path) -> str:
    """What transformers needs to read the tokenizer that is there instead."""
    try:
        with (folder / "tokenizer.model").open("rb") as file:
            first = file.read(1)
    except OSError:
        return ""
    # SentencePiece's files begin with the tag of their first field, tiktoken's with base64.
    packages = "sentencepiece protobuf" if first == b"\n" else "tiktoken"
    return f", which needs: pip install {packages} (for its tokenizer.model)"


def _check_added_ids(path: Path, tokenizer: "Tokenizer", rows: int) -> None:
    """Raise BadCheckpoint where every text would begin or end with a token without embedding."""
    with library_errors(
        lambda why: BadCheckpoint(f"{path} cannot encode a text: {why}; download it again")
    ):
        ids = tokenizer.encode("").ids
    if beyond := [token for token in ids if token >= rows]:
        raise BadCheckpoint(
            f"{path}: its post_processor adds token {beyond[0]} to every text, but the model has "
            f"embeddings of {rows} tokens; use the tokenizer that the model was published with"
        )


def _parse(path: Path, content: bytes) -> "Tokenizer":
    from tokenizers import Tokenizer

    with library_errors(
        lambda why: BadCheckpoint(
            f"{path} is not a tokenizer that the tokenizers package can read: {why}; download it "
            "again"
        )
    ):
        return Tokenizer.from_str(content.decode())


def _template(folder: Path) -> str | None:
    """The chat template, wherever this version of transformers wrote it."""
    path = folder / "chat_template.jinja"
    try:
        return read_file(path, max_bytes=_MAX_TEMPLATE_BYTES).decode()
    except FileNotFoundError:
        pass
    except UnicodeDecodeError:
        raise BadCheckpoint(f"{path} is not encoded in UTF-8; save it as UTF-8") from None
    path = folder / "tokenizer_config.json"
    template = (read_optional(path) or {}).get("chat_template")
    if isinstance(template, list | dict):
        template = _default_template(path, template)
    if template is not None and not isinstance(template, str):
        raise BadCheckpoint(f"{path}: chat_template is {shown(template)}, expected a text")
    return template


def _default_template(path: Path, templates: list[Any] | dict[str, Any]) -> Any:
    """Of several templates with names the one that transformers uses for conversations."""
    if isinstance(templates, list):
        wrong = [one for one in templates if not isinstance(one, dict) or "template" not in one]
        if wrong:
            raise BadCheckpoint(
                f"{path}: chat_template contains {shown(wrong[0])}, expected a name and a template"
            )
        # Of two with one name transformers uses the last.
        templates = {str(one.get("name")): one["template"] for one in templates}
    return templates.get("default")
