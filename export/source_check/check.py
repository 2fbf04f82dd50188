"""Whether a source is read as transformers reads it: checked before an export does any work."""

from collections.abc import Callable
from pathlib import Path

from edgelm.bundle.gates import SourceCheck
from edgelm.errors import GateFailed
from edgelm.export.cache import Kept
from edgelm.export.cached_steps import source_check_of
from edgelm.export.source.reference import Reference
from edgelm.export.source.text import Passage
from edgelm.export.source_check.prompts import check_prompts
from edgelm.export.source_check.second_opinion import check_source


def source_check(
    reference: Reference,
    passage: Passage,
    *,
    bundle: Path,
    context: int,
    scratch: Path,
    kept: Kept,
    enforced: bool,
    progress: Callable[[str], None],
) -> SourceCheck | None:
    """Compare logits and chat prompts; None where they differ and that is not enforced.

    Args:
        reference: the source as edgelm reads it.
        passage: text for the logits.
        bundle: the folder of the bundle, with its tokenizer files.
        context: tokens of the cache that the export is for.
        scratch: an existing folder for temporary files.
        kept: where the comparison is kept for the next export of the same source.
        enforced: raise where they differ, rather than say so.
        progress: called with a line at each step.

    Raises:
        GateFailed: they differ.
        BadCheckpoint: transformers cannot load the source.
    """

    def find() -> SourceCheck:
        progress("comparing the source with what transformers loads of it")
        return check_source(
            reference, passage.tokens, context=context, scratch=scratch, progress=progress
        )

    try:
        check_prompts(reference.checkpoint, bundle)
        return source_check_of(kept, passage, context, find)
    except GateFailed as error:
        if enforced:
            raise
        progress(f"warning: {error}")
        return None
