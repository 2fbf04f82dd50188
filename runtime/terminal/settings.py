"""The settings of answers, from options of the command line and from `/set`."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edgelm.errors import BadInput
from edgelm.runtime.generation.options import Options
from edgelm.runtime.generation.sampling.settings import Sampling

_DEFAULTS = Sampling()
SAMPLING = {
    "temperature": "randomness; 0 always takes the most probable token",
    "top-k": "keep the k most probable tokens; 0 keeps all",
    "top-p": "keep the most probable tokens up to this probability mass",
    "min-p": "drop tokens below this fraction of the highest probability",
    "typical-p": "keep the most typical tokens up to this probability mass",
    "repetition-penalty": "above 1 repeats less",
    "frequency-penalty": "subtract this from a token's logit for each earlier use",
    "presence-penalty": "subtract this once from the logit of a token used before",
}


def sampling_type(name: str) -> type:
    """The type of a sampling setting's value: int or float."""
    return type(getattr(_DEFAULTS, name.replace("-", "_")))


def sampling_default(name: str) -> Any:
    """What a sampling setting is where neither the caller nor the bundle says anything."""
    return getattr(_DEFAULTS, name.replace("-", "_"))


def flag(text: str) -> bool:
    """`on` or `off`.

    Raises:
        ValueError: something else.
    """
    values = {"on": True, "true": True, "off": False, "false": False}
    if text.lower() not in values:
        raise ValueError("expected on or off")
    return values[text.lower()]


# What `/set` can change -> how its value is read.
_READERS: dict[str, Callable[[str], Any]] = {
    "max-tokens": int,
    **{name: sampling_type(name) for name in SAMPLING},
    "seed": int,
    "stop": str,
    "reasoning-budget": int,
    "speculation": str,
    "adapter": str,
    "thinking": flag,
    "stats": flag,
}


@dataclass
class Settings:
    """Values by name; one that is not there is the bundle's own."""

    values: dict[str, Any] = field(default_factory=dict)
    fixed: Options = field(default_factory=Options)

    def set(self, name: str, text: str) -> None:
        """Change a setting; the text `default` removes it.

        Raises:
            BadInput: an unknown name, or a value of another type.
        """
        if name not in _READERS:
            raise BadInput(f"unknown setting {name!r}; there are: {', '.join(_READERS)}")
        if text == "default":
            self.values.pop(name, None)
            return
        try:
            self.values[name] = _READERS[name](text)
        except ValueError:
            expected = {int: "a whole number", float: "a number", flag: "on or off"}
            wanted = expected.get(_READERS[name], "a text")
            raise BadInput(f"{name} is {text!r}, expected {wanted}, or default") from None

    def lines(self) -> list[str]:
        """Each setting and its value."""
        return [f"{name:20} {self.values.get(name, 'default')}" for name in _READERS]

    @property
    def stats(self) -> bool:
        """Whether tokens and speed are printed behind each answer."""
        return bool(self.values.get("stats", False))

    @property
    def template(self) -> dict[str, Any]:
        """What the chat template is given."""
        given = dict(self.fixed.get("chat_template_kwargs") or {})
        if "thinking" in self.values:
            given["enable_thinking"] = self.values["thinking"]
        return given

    def options(self, *, chat: bool) -> Options:
        """The options of a generation; some are for answers to messages alone."""
        options: Any = dict(self.fixed)
        for name, value in self.values.items():
            if name not in ("thinking", "stats"):
                options[name.replace("-", "_")] = value
        options.pop("chat_template_kwargs", None)
        if chat:
            options["chat_template_kwargs"] = self.template
        else:
            for name in ("tools", "reasoning_budget"):
                options.pop(name, None)
        checked: Options = options
        return checked


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings that a command line gives."""
    names = ["max-tokens", *SAMPLING, "seed", "reasoning-budget", "adapter", "stats"]
    given = {name: getattr(arguments, name.replace("-", "_")) for name in names}
    settings = Settings({name: value for name, value in given.items() if value is not None})
    if arguments.stop:
        settings.fixed["stop"] = arguments.stop
    return settings
