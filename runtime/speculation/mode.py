"""Where drafted tokens come from, as a caller says it."""

import argparse

from edgelm.errors import BadInput
from edgelm.speculation import SPECULATION_MODES, SpeculationMode


def check_mode(value: object, *, has_draft: bool) -> SpeculationMode:
    """Return a mode.

    Args:
        value: what the caller gave.
        has_draft: whether the bundle has a draft model, draft head or assistant.

    Raises:
        BadInput: another value, or `draft` without a draft model.
    """
    for mode in SPECULATION_MODES:
        if value == mode:
            if mode == "draft" and not has_draft:
                raise BadInput(
                    "speculation is 'draft', but this bundle has no draft model, or was loaded "
                    "without it; make one with edge-export DRAFT --draft-for BUNDLE, export a "
                    "Qwen3.5 with its --draft-head or a Gemma 4 with its --assistant, or choose "
                    "'lookup'"
                )
            return mode
    raise BadInput(f"speculation is {value!r}, expected one of {', '.join(SPECULATION_MODES)}")


def add_speculation_option(parser: argparse.ArgumentParser) -> None:
    """Add `--speculation` to a command line."""
    parser.add_argument(
        "--speculation",
        choices=SPECULATION_MODES,
        default="auto",
        help="guess tokens and check several in one run: lookup takes guesses from the text so "
        "far, draft from the bundle's draft model; auto uses either where it is faster and leaves "
        "the answer the same (default: auto)",
    )
