"""A bundle's named special tokens, which chat templates write as `bos_token` and the like."""

import json
from pathlib import Path

from edgelm.errors import BadBundle
from edgelm.files.bounded_read import read_bounded
from edgelm.files.json_files import unique_fields
from edgelm.reasons import reason

_MAX_BYTES = 2**20


def read_special_tokens(path: Path | None) -> dict[str, str] | None:
    """Text of each special token by name; a token that the tokenizer has not is not in it.

    Args:
        path: the bundle's `special_tokens_map.json`; None if the bundle has none.

    Returns:
        None if there is no file: a bundle written before there was one.

    Raises:
        BadBundle: the file is damaged.
    """
    if path is None:
        return None
    try:
        text = read_bounded(path, at_most=_MAX_BYTES).decode()
        tokens = json.loads(text, object_pairs_hook=unique_fields)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise BadBundle(
            f"{path} is not valid JSON: {reason(error)}; export the model again"
        ) from None
    if not isinstance(tokens, dict) or not all(isinstance(text, str) for text in tokens.values()):
        raise BadBundle(f"{path} does not map names to tokens; export the model again")
    return tokens
