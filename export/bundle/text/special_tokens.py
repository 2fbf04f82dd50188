"""The named special tokens of a model folder (`bos_token`, ...), as its chat template sees them.

They are the tokenizer's own, which need not be those of config.json: a tokenizer may have no BOS
though the configuration names one. transformers decides, from `tokenizer_config.json`, the older
`special_tokens_map.json` and the defaults of the tokenizer's class.
"""

from pathlib import Path
from typing import Any

from edgelm.checkpoint.special_token_names import SPECIAL_TOKEN_NAMES, SPECIAL_TOKENS_FILE
from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import read_json_object, shown

_CONFIG = "tokenizer_config.json"
_MAX_BYTES = 64 * 2**20


def special_tokens(folder: Path) -> dict[str, str] | None:
    """Text of each special token by name; None if no file of the folder names any.

    Raises:
        BadCheckpoint: a file is damaged, or holds something else than tokens.
    """
    files = [read_optional(folder / name) for name in (_CONFIG, SPECIAL_TOKENS_FILE)]
    if files == [None, None]:
        return None
    config, legacy = (file or {} for file in files)
    # A configuration that lists the added tokens is newer than the separate file.
    both = config if "added_tokens_decoder" in config else config | legacy
    named = {name: _text(folder, name, both[name]) for name in SPECIAL_TOKEN_NAMES if name in both}
    theirs = _from_transformers(folder)
    if theirs is not None:
        return theirs
    return {name: text for name, text in named.items() if text is not None}


def read_optional(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file that need not be there."""
    try:
        return read_json_object(path, max_bytes=_MAX_BYTES)
    except FileNotFoundError:
        return None


def _text(folder: Path, name: str, value: Any) -> str | None:
    if isinstance(value, dict):  # how an AddedToken is written
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise BadCheckpoint(
            f"{folder / _CONFIG}: {name} is {shown(value)}, expected a token's text or null"
        )
    return value


def _from_transformers(folder: Path) -> dict[str, str] | None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        return {name: str(text) for name, text in tokenizer.special_tokens_map.items()}
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # a class of its own, or a file it cannot read: the files alone say it
        return None
