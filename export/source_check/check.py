"""Whether a source is read as transformers reads it: checked before an export does any work."""

from edgelm.bundle.records.gates import SourceCheck
from edgelm.errors import GateFailed
from edgelm.export.source.reference import Reference
from edgelm.export.source.text import Passage
from edgelm.export.source_check.chat_use import check_chat
from edgelm.export.source_check.prompts import check_prompts
from edgelm.export.source_check.second_opinion import check_source
from edgelm.export.work.cache import key
from edgelm.export.workspace import Workspace


def source_check(
    reference: Reference, passage: Passage, context: int, workspace: Workspace, *, enforced: bool
) -> SourceCheck | None:
    """Compare logits and chat prompts; None where they differ and that is not enforced.

    Args:
        reference: the source as edgelm reads it.
        passage: text for the logits.
        context: tokens of the cache that the export is for.
        workspace: its bundle has the tokenizer files.
        enforced: raise where they differ, rather than warn.

    Raises:
        GateFailed: they differ, or the chat template renders no conversation.
        BadCheckpoint: transformers cannot load the source.
    """
    try:
        for warning in check_chat(reference.checkpoint, workspace.bundle):
            workspace.progress(f"warning: {warning}")
    except GateFailed as error:
        if enforced:
            raise
        workspace.progress(f"warning: {error}")  # and the logits are compared nevertheless
    try:
        check_prompts(reference.checkpoint, workspace.bundle)
        return _compare_logits(reference, passage, context, workspace)
    except GateFailed as error:
        if enforced:
            raise
        workspace.progress(f"warning: {error}")
        return None


def _compare_logits(
    reference: Reference, passage: Passage, context: int, workspace: Workspace
) -> SourceCheck:
    name = f"source {key(passage.tokens_sha256, context)}"
    check = workspace.cache.load_record(name, SourceCheck)
    if check is None:
        workspace.progress("comparing the source with the model that transformers loads")
        check = check_source(
            reference,
            passage.tokens,
            context=context,
            scratch=workspace.scratch,
            progress=workspace.progress,
        )
        workspace.cache.save_record(name, check)
    return check
