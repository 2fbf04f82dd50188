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


def check_without_draft_head(switchable: Collection[str], *, draft_head: bool) -> None:
    """Raise BadInput for a draft head beside adapters that requests choose from."""
    if draft_head and switchable:
        raise BadInput(
            "a draft head and switchable adapters exclude each other: leave out --draft-head, or "
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
