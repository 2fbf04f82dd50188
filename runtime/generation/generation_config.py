"""A bundle's generation_config.json: when an answer ends, and how its authors sample."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.errors import BadBundle, BadInput
from edgelm.files.bounded_read import read_bounded
from edgelm.files.json_files import unique_fields
from edgelm.reasons import reason
from edgelm.runtime.generation.sampling.settings import Sampling

GENERATION_CONFIG = "generation_config.json"
_MAX_BYTES = 2**20
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """What is used of the file; `values` is all of it."""

    values: dict[str, Any]
    eos_token_ids: frozenset[int]

    def sampling(self, vocab_size: int) -> Sampling:
        """The sampling that the model's authors recommend, else greedy.

        Raises:
            BadBundle: values that no sampling can have.
        """
        if not self.values.get("do_sample"):
            return Sampling()
        given = {key: self.values[key] for key in _SAMPLING if self.values.get(key) is not None}
        sampling = Sampling(**{"temperature": 1.0, **given})
        try:
            sampling.check(vocab_size)
        except BadInput as error:
            raise BadBundle(f"{GENERATION_CONFIG}: {error}; export the model again") from None
        return sampling

    def special_tokens(self) -> dict[str, int]:
        """Ids of the named special tokens; -1 for one that the file does not have."""
        ids = {}
        for name in ("bos_token", "eos_token", "pad_token"):
            value = self.values.get(f"{name}_id")
            first = value[0] if isinstance(value, list) and value else value
            ids[name] = first if isinstance(first, int) else -1
        return ids


def read_generation_config(path: Path | None) -> GenerationConfig:
    """Read the file; None where the bundle has none.

    Raises:
        BadBundle: the file is damaged.
    """
    values = {} if path is None else _read(path)
    return GenerationConfig(values, _eos_token_ids(values.get("eos_token_id")))


def _read(path: Path) -> dict[str, Any]:
    try:
        text = read_bounded(path, at_most=_MAX_BYTES).decode()
        values = json.loads(text, object_pairs_hook=unique_fields)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested too deep
        raise BadBundle(
            f"{path} is not valid JSON: {reason(error)}; export the model again"
        ) from None
    if not isinstance(values, dict):
        raise BadBundle(
            f"{path} holds a {type(values).__name__}, expected an object; export the model again"
        )
    return values


def _eos_token_ids(given: object) -> frozenset[int]:
    ids = given if isinstance(given, list) else [] if given is None else [given]
    for token in ids:
        if not isinstance(token, int) or isinstance(token, bool) or token < 0:
            raise BadBundle(
                f"{GENERATION_CONFIG}: eos_token_id is {str(given)[:80]}, expected a token id "
                "or a list of them; export the model again"
            )
    return frozenset(ids)
