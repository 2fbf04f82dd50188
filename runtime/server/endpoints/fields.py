"""A request's fields as the options of a generation."""

from typing import Any

from edgelm.runtime.generation.options import Options
from edgelm.runtime.server.errors import ApiError
from edgelm.runtime.server.requests import Effort, SamplingFields
from edgelm.runtime.server.settings import ServerSettings

_OPTIONS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "speculation",
)


def options_of(
    fields: SamplingFields, settings: ServerSettings, *, max_tokens: int | None, **more: Any
) -> Options:
    """The options of a generation.

    Args:
        fields: the request.
        settings: whose limit of tokens holds, too.
        max_tokens: the request's limit.
        more: further options; those that are None are left out.

    Raises:
        ApiError: token ids that are not numbers.
    """
    options: dict[str, Any] = {
        name: value for name in _OPTIONS if (value := getattr(fields, name)) is not None
    }
    options.update({name: value for name, value in more.items() if value is not None})
    limits = [limit for limit in (max_tokens, settings.max_tokens) if limit is not None]
    options["max_tokens"] = min(limits, default=None)
    if fields.logit_bias:
        options["logit_bias"] = _logit_bias(fields.logit_bias)
    if fields.seed is not None:
        options["seed"] = fields.seed % (1 << 63)
    return options  # type: ignore[return-value]


def reasoning_options(
    effort: Effort | None, budget: int | None, template: dict[str, Any] | None
) -> dict[str, Any]:
    """The options of a model's reasoning.

    Args:
        effort: OpenAI's `reasoning_effort`, which some templates read. "none" also switches
            reasoning off, as the templates with such a switch call it, and allows no token of it.
        budget: the request's own `reasoning_budget`.
        template: its own arguments of the template, which have priority.
    """
    if effort is None:
        return {"reasoning_budget": budget, "chat_template_kwargs": template}
    given = {"enable_thinking": False} if effort == "none" else {"reasoning_effort": effort}
    if effort == "none" and budget is None:
        budget = 0
    return {"reasoning_budget": budget, "chat_template_kwargs": {**given, **(template or {})}}


def for_choice(options: Options, index: int) -> Options:
    """The options of one of several answers: each has a seed of its own."""
    seed = options.get("seed")
    return options if seed is None or index == 0 else {**options, "seed": seed + index}


def _logit_bias(given: dict[str, float]) -> dict[int, float]:
    try:
        return {int(token): bias for token, bias in given.items()}
    except ValueError:
        raise ApiError(
            400, f"logit_bias names {next(iter(given))!r}, expected token ids", param="logit_bias"
        ) from None
