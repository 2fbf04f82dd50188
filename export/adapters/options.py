"""What the options `--adapter` and `--switchable` say."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from edgelm.checkpoint.adapter.settings import read_settings
from edgelm.errors import BadInput
from edgelm.export.adapters.switchable import check_engine, check_names


def chosen_adapters(
    given: Sequence[str], *, switchable: bool
) -> tuple[Path | None, dict[str, Path]]:
    """The adapter that is merged, and those that are switched at run time, by name.

    Args:
        given: the values of `--adapter`: one folder, or NAME=DIR of each that can be switched.
        switchable: whether they stay apart from the weights.

    Raises:
        BadInput: several to merge, or one without a name to switch.
    """
    if not switchable:
        if len(given) > 1:
            raise BadInput(
                f"{len(given)} adapters were given, but only one can be merged; to choose among "
                "several per request, use --switchable --adapter NAME=DIR"
            )
        return (Path(given[0]) if given else None), {}
    if not given:
        raise BadInput("--switchable needs adapters: --adapter NAME=DIR, once for each")
    pairs = [_named(text) for text in given]
    check_names([name for name, _ in pairs])
    return None, dict(pairs)


def check_drafts(
    switchable: Collection[str], *, draft_head: bool, assistant: str | Path | None
) -> None:
    """Raise BadInput for a draft head and an assistant, or one with adapters to choose from."""
    if draft_head and assistant is not None:
        raise BadInput(
            "a bundle has one draft: leave out --draft-head (heads of Qwen3.5) or --assistant "
            "(those of Gemma 4)"
        )
    if switchable and (draft_head or assistant is not None):
        what, option = (
            ("a draft head", "--draft-head") if draft_head else ("an assistant", "--assistant")
        )
        raise BadInput(
            f"{what} and switchable adapters exclude each other: leave out {option}, or "
            "merge one adapter (without --switchable)"
        )


def _named(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    if not separator or not folder:
        raise BadInput(f"--adapter {text!r}: with --switchable expected NAME=DIR")
    return name, Path(folder)


def check_planned(merged: Path | None, switchable: Mapping[str, Path], *, engine: str) -> None:
    """Check what needs no weights, for a plan.

    Raises:
        BadInput: an engine that switches no adapters.
        BadCheckpoint: a folder that is not one of a LoRA.
    """
    if switchable:
        check_engine(engine)
    for folder in (*switchable.values(), *([merged] if merged else [])):
        read_settings(folder)
