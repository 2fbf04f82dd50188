"""The options of a generation, checked and made into a request."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from numbers import Integral
from typing import Any, Protocol, TypedDict

import numpy as np

from edgelm.errors import BadInput
from edgelm.runtime.engines.session import Tokens
from edgelm.runtime.generation.request import GenerationRequest
from edgelm.runtime.generation.sampling.logits_processor import Constraint, LogitsProcessor
from edgelm.runtime.generation.sampling.settings import Sampling
from edgelm.speculation import SpeculationMode

_MAX_STOPS, _MAX_STOP_CHARACTERS = 1000, 100_000


class Event(Protocol):
    """What `threading.Event` has, and others like it."""

    def is_set(self) -> bool: ...


class Options(TypedDict, total=False):
    """Options of a generation, by keyword.

    max_tokens: at most this many tokens are generated; by default until the model ends its answer
        or the context is full. `max_new_tokens` is the same by transformers' name.
    stop: a string or several: the text ends before the first that occurs.
    stop_tokens: ids of tokens that end the generation.
    logprobs: None, or n: the log-probability of each token and those of the n most probable.
    logits_processors: functions (tokens so far, logits) -> logits; see
        `edgelm.runtime.generation.sampling.logits_processor`.
    response_format: the form of the text, as in OpenAI's API: `{"type": "json_object"}`, a JSON
        schema, a regular expression or a grammar; see docs/how-to/structured.md.
    tools: in answers to messages, the functions that the model may call, as in OpenAI's API.
    tool_choice: "auto", "none", "required" or the function to call, as in OpenAI's API.
    parallel_tool_calls: False allows at most one call, with which the answer ends.
    reasoning_budget: in answers to messages, the maximum number of tokens of reasoning.
    chat_template_kwargs: in answers to messages, further arguments of the chat template, such as
        `{"enable_thinking": False}`.
    speculation: "auto", "off", "lookup" or "draft": how tokens are drafted; by default as `load`
        was called. See docs/how-to/speculation.md.
    adapter: the name of an adapter of the bundle that the model runs with; None for none.
    cancel: an event, or a function that returns whether to stop; checked before every token and
        during a long prefill.

    The other options choose the next token: see Sampling.
    """

    max_tokens: int | None
    max_new_tokens: int | None
    stop: str | Sequence[str]
    stop_tokens: Sequence[int]
    logprobs: int | None
    logits_processors: Sequence[LogitsProcessor]
    response_format: Mapping[str, Any] | None
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    reasoning_budget: int | None
    chat_template_kwargs: Mapping[str, Any] | None
    speculation: SpeculationMode | None
    adapter: str | None
    cancel: Callable[[], bool] | Event
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None


# Greedy decoding without the penalties that a generation config may name.
GREEDY = Options(
    temperature=0.0, repetition_penalty=1.0, frequency_penalty=0.0, presence_penalty=0.0
)


def make_request(
    tokens: Tokens | Sequence[int],
    options: Options,
    defaults: Sampling,
    *,
    constraint: Callable[[], Constraint] | None = None,
) -> GenerationRequest:
    """Check types and fill in defaults.

    Args:
        tokens: the prompt [n].
        options: what the caller gave.
        defaults: the sampling of a caller that gives nothing.
        constraint: what the option `response_format` was made into.

    Raises:
        BadInput: an unknown option, or a value of another type than expected.
    """
    unknown = set(options) - set(Options.__annotations__)
    if unknown:
        raise BadInput(
            f"unknown option {min(unknown)!r}; known: {', '.join(Options.__annotations__)}"
        )
    names = {field.name for field in fields(Sampling)}
    sampling: dict[str, Any] = {key: value for key, value in options.items() if key in names}
    return GenerationRequest(
        tokens=_token_array(tokens),
        max_tokens=_max_tokens(options),
        sampling=replace(defaults, **sampling),
        stop=_stop_strings(options.get("stop")),
        stop_tokens=_stop_tokens(options.get("stop_tokens")),
        logprobs=_count("logprobs", options.get("logprobs")),
        processors=_processors(options.get("logits_processors")),
        constraint=constraint,
        cancel=_cancel_check(options.get("cancel")),
    )


def _token_array(tokens: object) -> Tokens:
    try:
        array = np.asarray(tokens)
    except (ValueError, TypeError, OverflowError):  # ragged lists and the like
        array = np.empty(0, dtype=object)
    if isinstance(tokens, (list, tuple)) and not tokens:
        array = np.empty(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise BadInput(
            f"the prompt is {_shown(tokens)}, expected a text, a list of messages, or token ids (a "
            "list or a one-dimensional array of integers)"
        )
    return array.astype(np.int64)


def _max_tokens(options: Options) -> int | None:
    given = {name: options.get(name) for name in ("max_tokens", "max_new_tokens")}
    limits = {_count(name, value) for name, value in given.items() if value is not None}
    if len(limits) > 1:
        raise BadInput(
            f"max_tokens is {given['max_tokens']} and max_new_tokens {given['max_new_tokens']}; "
            "they are two names of one limit: give one"
        )
    return limits.pop() if limits else None


def _count(name: str, value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise BadInput(f"{name} is {_shown(value)}, expected an integer or None")
    return int(value)


def _stop_strings(stop: object) -> tuple[str, ...]:
    if stop is None:
        return ()
    strings = (stop,) if isinstance(stop, str) else _listed(stop)
    if strings is None or not all(isinstance(string, str) for string in strings):
        raise BadInput(f"stop is {_shown(stop)}, expected a string or a list of strings")
    total = sum(map(len, strings))
    if len(strings) > _MAX_STOPS or total > _MAX_STOP_CHARACTERS:  # each is sought at every token
        raise BadInput(
            f"stop has {len(strings)} strings of {total} characters in all, expected at most "
            f"{_MAX_STOPS} of {_MAX_STOP_CHARACTERS}"
        )
    return tuple(str(string) for string in strings)


def _stop_tokens(tokens: object) -> frozenset[int]:
    if tokens is None:
        return frozenset()
    listed = _listed(tokens)
    if listed is None or not all(
        isinstance(token, Integral) and not isinstance(token, bool) for token in listed
    ):
        raise BadInput(f"stop_tokens is {_shown(tokens)}, expected a list of token ids")
    return frozenset(int(token) for token in listed)


def _processors(given: object) -> tuple[LogitsProcessor, ...]:
    listed = () if given is None else _listed(given)
    if listed is None or not all(callable(one) for one in listed):
        raise BadInput(
            f"logits_processors is {_shown(given)}, expected a list of functions (tokens, logits) "
            "-> logits"
        )
    return listed


def _listed(value: object) -> tuple[Any, ...] | None:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        return None
    return tuple(value)


def _cancel_check(cancel: object) -> Callable[[], bool]:
    if cancel is None:
        return lambda: False
    check = getattr(cancel, "is_set", cancel)
    if not callable(check):
        raise BadInput(
            f"cancel is {_shown(cancel)}, expected a function that returns whether to stop, or an "
            "event"
        )
    return lambda: bool(check())


def _shown(value: object) -> str:
    """A value as an error names it, of at most some 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
