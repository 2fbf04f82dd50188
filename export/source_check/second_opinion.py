"""A second opinion on the gate's reference: what transformers itself loads from the source.

The gate compares a graph with `Reference`, and both read the source through edgelm's own code: a
mistake there would be made on both sides, and the gate would see none. So before any work a sample
of tokens goes through the model that `AutoModelForCausalLM.from_pretrained` makes of the source,
and through the reference: both are fp32 and must agree. Two stretches are looked at beside the
beginning of the context: its end, where scaled rotary embeddings differ, and the first positions
from which a layer's window no longer reaches back to the start.

Where memory is short, and of long GGUF files, the model is loaded with its first layers only, and
the reference is run to the same depth. Weights that transformers cannot load come from edgelm's
readers anyway: of a large model they are streamed, through all layers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from edgelm.bundle.records.gates import MAX_SOURCE_KL, SourceCheck
from edgelm.devices.detection.memory import available_bytes
from edgelm.errors import BadCheckpoint, GateFailed
from edgelm.export.source.head import Head
from edgelm.export.source.reference import Reference
from edgelm.export.source_check.transformers_model import transformers_model
from edgelm.spec.decoder import DecoderSpec

_MEMORY_SHARE = 0.3  # of what is free, for each model's weights
_MAX_KEPT_BYTES = 1e9  # of weights that transformers cannot load itself
# transformers' reader of GGUF files takes time with the square of the layers, half a minute for 30.
_GGUF_LAYERS = 12
_TOKENS = 96
_BEYOND = 32  # tokens after the first that a window hides something from
_CHUNK = 256  # tokens at a time: the scores of a long prompt are never held at once
_MAX_OPERATIONS = 6e12  # for one stretch; about a minute on two cores


class _Stretch(NamedTuple):
    """Tokens [1, T] at positions from `start`, of whose logits the last `rows` are compared."""

    tokens: torch.Tensor
    start: int
    rows: int


def check_source(
    reference: Reference,
    tokens: torch.Tensor,
    *,
    context: int,
    scratch: Path,
    progress: Callable[[str], None] = lambda _: None,
) -> SourceCheck:
    """Compare the reference with what transformers makes of the same source.

    Args:
        reference: the source as edgelm reads it.
        tokens: int64 [B, T] of text; repeated where a window is longer than it.
        context: tokens of the cache that the export is for.
        scratch: an existing folder for temporary files.
        progress: called with a line where a stretch is left out.

    Raises:
        GateFailed: they differ.
        BadCheckpoint: transformers cannot load the source, or it computes NaN.
    """
    checkpoint = reference.checkpoint
    depth = _affordable_depth(checkpoint.spec)
    streamed = not checkpoint.loads_elsewhere and _exceeds_memory(checkpoint.spec)
    if streamed:
        depth = checkpoint.spec.num_hidden_layers
    if checkpoint.is_gguf:
        depth = min(depth, _GGUF_LAYERS)
    worst = SourceCheck(layers=depth, tokens=0, reach=0, kl=0.0, top1=1.0)
    if not checkpoint.loads_elsewhere:
        worst = msgspec.structs.replace(worst, weights="edgelm")
        progress(
            "transformers cannot load these weights: it computes with the weights that edgelm reads"
        )
    kept = nullcontext() if streamed else reference.cached_reads()
    with transformers_model(checkpoint, depth, scratch, streamed=streamed) as other, kept:
        stretches = [*_ends(reference, tokens, context)]
        if not reference.depends_on_context:
            stretches += _windows(other, tokens, context, progress)
        head = reference.head()
        for stretch in stretches:
            worst = _worse(worst, stretch, *_compare(reference, head, other, stretch, depth))
    if not worst.agrees:
        raise GateFailed(
            f"{checkpoint.name} has other logits when transformers loads it: KL "
            f"{worst.kl:.2g} (limit {MAX_SOURCE_KL:g}), top-1 {worst.top1:.1%} over {worst.tokens} "
            f"tokens, {worst.layers} of {checkpoint.spec.num_hidden_layers} layers. edgelm reads "
            "its weights or its configuration differently: every bundle of it would be wrong; "
            "please report it with its config.json (--gate off exports it anyway)"
        )
    return worst


def _exceeds_memory(spec: DecoderSpec) -> bool:
    """Whether weights that edgelm reads are streamed, since they would take too much memory."""
    return 4 * spec.parameters > min(_MEMORY_SHARE * available_bytes(), _MAX_KEPT_BYTES)


def _affordable_depth(spec: DecoderSpec) -> int:
    """How many layers of the source fit in memory in fp32; at least one."""
    room = _MEMORY_SHARE * available_bytes()
    heads = 1 if spec.tie_word_embeddings else 2
    layer = 4 * (spec.parameters - heads * spec.embedding_parameters) / spec.num_hidden_layers
    fitting = int((room - 4 * heads * spec.embedding_parameters) / layer)
    return max(1, min(spec.num_hidden_layers, fitting))


def _ends(reference: Reference, tokens: torch.Tensor, context: int) -> Iterator[_Stretch]:
    """The beginning and the end of the context."""
    some = tokens[:1, : min(_TOKENS, context)]
    count = some.shape[1]
    # With longrope transformers goes by the positions in use, and the export by its context: they
    # agree at the end of the context only.
    if not reference.depends_on_context:
        yield _Stretch(some, 0, count)
    if context > count:
        yield _Stretch(some, context - count, count)


def _windows(
    other: Any, tokens: torch.Tensor, context: int, progress: Callable[[str], None]
) -> Iterator[_Stretch]:
    """For every window that is shorter than the context: a prompt that is longer than it."""
    config = other.config
    kinds = getattr(config, "layer_types", None) or ()
    window = getattr(config, "sliding_window", None)
    if not window or window >= context or (kinds and "sliding_attention" not in kinds):
        return
    count = min(context, window + _BEYOND)
    weights = sum(parameter.numel() for parameter in other.base_model.layers.parameters())
    if 4 * weights * count > _MAX_OPERATIONS:
        progress(f"not compared with transformers beyond the window of {window:,}: too costly here")
        return
    flat = tokens.flatten()
    repeated = flat.repeat(-(-count // len(flat)))[:count]
    yield _Stretch(repeated[None], 0, count - window)


def _compare(
    reference: Reference, head: Head, other: Any, stretch: _Stretch, depth: int
) -> tuple[float, float]:
    """KL from the other model to the reference, and the share of equal best tokens."""
    hybrid = other.config if reference.spec.is_hybrid else None
    theirs = _rows(
        stretch, hybrid, lambda ids, at, cache: _theirs(other, ids, at, cache, stretch.rows)
    )
    if not bool(theirs.isfinite().all()):
        raise BadCheckpoint(
            f"{reference.checkpoint.name} computes NaN or infinity in fp32, in transformers as "
            "well: its weights are too large; download or convert it again"
        )
    with _depth(reference, depth):
        hidden = _rows(stretch, hybrid, lambda ids, at, cache: _states(reference, ids, at, cache))
        ours = reference.logits(hidden, head)
    right, found = theirs.double().log_softmax(-1), ours.double().log_softmax(-1)
    kl = float((right.exp() * (right - found)).sum(-1).mean())
    top1 = float((right.argmax(-1) == found.argmax(-1)).double().mean())
    return kl, top1


def _rows(
    stretch: _Stretch,
    hybrid: Any,
    run: Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor],
) -> torch.Tensor:
    """The last rows [P, …] of a run over the stretch, a chunk at a time over one cache.

    `hybrid`: the configuration of a model with layers that remember more than keys and values.
    """
    from transformers import DynamicCache

    cache = DynamicCache(config=hybrid)
    parts = []
    for at in range(0, stretch.tokens.shape[1], _CHUNK):
        ids = stretch.tokens[:, at : at + _CHUNK]
        first = stretch.start + at
        positions = torch.arange(first, first + ids.shape[1])[None]
        parts.append(run(ids, positions, cache)[0])
    return torch.cat(parts)[-stretch.rows :]


def _theirs(
    other: Any, ids: torch.Tensor, positions: torch.Tensor, cache: Any, rows: int
) -> torch.Tensor:
    with torch.inference_mode():
        return other(  # type: ignore[no-any-return]
            input_ids=ids,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=rows,
        ).logits


def _states(
    reference: Reference, ids: torch.Tensor, positions: torch.Tensor, cache: Any
) -> torch.Tensor:
    with torch.inference_mode():
        return reference.model.base_model(  # type: ignore[no-any-return]
            input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state


@contextmanager
def _depth(reference: Reference, depth: int) -> Iterator[None]:
    """Let the reference run its first `depth` layers in this block."""
    config = reference.model.base_model.config
    whole = config.num_hidden_layers
    config.num_hidden_layers = depth
    try:
        yield
    finally:
        config.num_hidden_layers = whole


def _worse(worst: SourceCheck, stretch: _Stretch, kl: float, top1: float) -> SourceCheck:
    return msgspec.structs.replace(
        worst,
        tokens=worst.tokens + stretch.rows,
        reach=max(worst.reach, stretch.start + stretch.tokens.shape[1]),
        # Not max(): NaN must not pass for the smaller one.
        kl=kl if not kl <= worst.kl else worst.kl,
        top1=min(worst.top1, top1),
    )
