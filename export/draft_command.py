"""`edge-export MODEL --draft-for BUNDLE`: a draft model into a bundle that exists."""

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from edgelm.cli import format_bytes
from edgelm.errors import BadInput
from edgelm.export.bundle_commands import print_manifest

if TYPE_CHECKING:
    from edgelm.planning import PlanRequest
    from edgelm.spec.decoder import DecoderSpec

_OF_THE_BUNDLE = "target, engine and context are the bundle's"
# Options that mean nothing for a draft model, and why.
_REFUSED = {
    "output": "it is written into the bundle",
    "target": _OF_THE_BUNDLE,
    "engine": _OF_THE_BUNDLE,
    "sm": _OF_THE_BUNDLE,
    "context": _OF_THE_BUNDLE,
    "kv": "its cache has the default type of the bundle's target",
    "segments": "its graph is not compiled",
    "gate_text": "it has no quality gate, since the large model checks every token",
    "max_size": "name a --precision, or a smaller model",
    "adapter": "it is exported as it is",
    "switchable": "it is exported as it is",
    "assistant": "it belongs to the export of its own model",
    "draft_head": "it belongs to the export of its own model",
    "plan": "edge-devices plan MODEL --draft DRAFT predicts the gain",
}


def plan_assistant(
    arguments: argparse.Namespace, request: "PlanRequest", spec: "DecoderSpec"
) -> "PlanRequest":
    """The request to plan with the assistant of `--assistant`, of which no weights are read.

    Raises:
        BadInput: a draft head beside it, or an assistant of another model.
        BadCheckpoint: its configuration has a field that is missing or has an invalid value.
    """
    import msgspec

    from edgelm.checkpoint.drafts.assistant import read_assistant_spec
    from edgelm.export.adapters.options import check_drafts

    check_drafts((), draft_head=arguments.draft_head, assistant=arguments.assistant)
    assistant = read_assistant_spec(arguments.assistant, spec)
    return msgspec.structs.replace(request, assistant=assistant)


def export_draft_model(
    arguments: argparse.Namespace,
    defaults: argparse.Namespace,
    exceptions: Mapping[str, str],
    progress: Callable[[str], None],
) -> None:
    """Export the model into the bundle's folder, and print what it is.

    Args:
        arguments: of `edge-export`.
        defaults: the same where no option is given.
        exceptions: those of `--layer`.
        progress: called with one line at each stage.

    Raises:
        BadInput: an option that a draft model does not have.
    """
    for name, why in _REFUSED.items():
        if getattr(arguments, name) != getattr(defaults, name):
            option = "-o" if name == "output" else f"--{name.replace('_', '-')}"
            raise BadInput(f"leave out {option} with --draft-for: {why}")
    from edgelm.bundle import DRAFT
    from edgelm.export.bundle.draft_model import export_draft

    given: dict[str, Any] = {
        name: value
        for name in ("precision", "calibration")
        if (value := getattr(arguments, name)) is not None
    }
    draft = export_draft(
        arguments.model,
        arguments.draft_for,
        group_size=arguments.group_size,
        symmetric=arguments.symmetric,
        exceptions=exceptions,
        method=arguments.method,
        revision=arguments.revision,
        work=arguments.work,
        progress=progress,
        **given,
    )
    if arguments.json:
        print_manifest(arguments.draft_for / DRAFT)
        return
    print(
        f"{arguments.draft_for}: has a draft model of {draft.spec.parameters / 1e6:.1f} M "
        f"parameters, {format_bytes(draft.weight_bytes)}"
    )
    print(f"measure the gain: edge-bench {arguments.draft_for} --speculation draft")
