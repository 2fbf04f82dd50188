"""`generation_config.json` of a bundle: sampling defaults, special ids, every end-of-turn id."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from edgelm.checkpoint.gguf.vocabulary import END_OF_TURN, without_channels
from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import shown
from edgelm.spec.config.config_fields import MAX_WIDTH

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# What the runtime's sampler takes.
_SETTINGS: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda value: value >= 0, "at least 0"),
    "top_k": (lambda value: value >= 0, "at least 0"),
    "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "min_p": (lambda value: 0 <= value <= 1, "between 0 and 1"),
    "typical_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "repetition_penalty": (lambda value: value > 0, "above 0"),
}


def generation_defaults(
    source: str, stored: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """What the model's authors recommend, checked; ids that only config.json names are added.

    Args:
        source: names the file in messages.
        stored: the contents of the model's generation_config.json.
        config: the contents of its config.json.

    Raises:
        BadCheckpoint: a value that the runtime could not use.
    """
    defaults = {key: config.get(key) for key in _TOKEN_IDS}
    defaults |= {key: value for key, value in stored.items() if value is not None}
    for key in _TOKEN_IDS:
        ids = token_ids(source, key, defaults[key])
        defaults[key] = ids if isinstance(defaults[key], list) else next(iter(ids), None)
    _check_sampling(source, defaults)
    return {key: value for key, value in defaults.items() if value is not None}


def token_ids(source: str, key: str, value: Any) -> list[int]:
    """One id or a list of them as a list; a negative one means that there is none.

    Raises:
        BadCheckpoint: it is neither.
    """
    ids = value if isinstance(value, list) else [] if value is None else [value]
    whole = all(isinstance(token, int) and not isinstance(token, bool) for token in ids)
    if not whole or any(token >= MAX_WIDTH for token in ids):
        raise BadCheckpoint(f"{source}: {key} is {shown(value)}, expected a token id or a list")
    return list(dict.fromkeys(token for token in ids if token >= 0))


def eos_with_template(
    template: str | None,
    special: Iterable[str],
    eos_token_ids: list[int],
    find: Callable[[str], int | None],
    text: Callable[[int], str | None],
) -> list[int]:
    """Add the tokens that are known to end a turn and that the chat template writes.

    A fine-tune often keeps the base model's configuration, whose end token ends a document.

    Args:
        template: the chat template.
        special: texts of all special tokens.
        eos_token_ids: those that the files name.
        find: the id of a text.
        text: the text of an id.
    """
    written = [token for token in special if token in END_OF_TURN and token in (template or "")]
    found = sorted(index for index in map(find, written) if index is not None)
    return without_channels(list(dict.fromkeys([*eos_token_ids, *found])), text)


def _check_sampling(source: str, defaults: Mapping[str, Any]) -> None:
    """Refuse at export what the runtime would refuse at the first use."""
    samples = defaults.get("do_sample", False)
    if not isinstance(samples, bool):
        raise BadCheckpoint(f"{source}: do_sample is {shown(samples)}, expected true or false")
    given = {key: defaults[key] for key in _SETTINGS if defaults.get(key) is not None}
    for key, value in given.items():
        kinds = int if key == "top_k" else int | float
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise BadCheckpoint(f"{source}: {key} is {shown(value)}, expected a number")
        allows, expected = _SETTINGS[key]
        # Only a model that asks for sampling is sampled by its own settings.
        if samples and not (abs(value) < 2**31 and allows(value)):
            raise BadCheckpoint(f"{source}: {key} is {shown(value)}, expected a number {expected}")
