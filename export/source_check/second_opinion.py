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
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import msgspec
import torch

from edgelm.bundle.records.gates import MAX_SOURCE_KL, SourceCheck
from edgelm.checkpoint.meta_model import empty_model, hf_config, remove_step_limits
from edgelm.checkpoint.source import Checkpoint
from edgelm.checkpoint.weights.files import incomplete_index
from edgelm.devices.detection.memory import available_bytes
from edgelm.errors import BadCheckpoint, GateFailed
from edgelm.export.source.reference import Reference
from edgelm.export.source.streaming import stream_weights
from edgelm.export.source_check.completed_index import link_with_index
from edgelm.export.source_check.gguf_copy import copy_weights
from edgelm.reasons import reason
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.tensor_names import stored_name
from edgelm.spec.tensor_shapes import EMBEDDING_WEIGHT, HEAD_WEIGHT

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
    with _loaded(checkpoint, depth, scratch, streamed=streamed) as other, kept:
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
    weights = sum(parameter.numel() for parameter in other.model.layers.parameters())
    if 4 * weights * count > _MAX_OPERATIONS:
        progress(f"not compared with transformers beyond the window of {window:,}: too costly here")
        return
    flat = tokens.flatten()
    repeated = flat.repeat(-(-count // len(flat)))[:count]
    yield _Stretch(repeated[None], 0, count - window)


@contextmanager
def _loaded(checkpoint: Checkpoint, depth: int, scratch: Path, *, streamed: bool) -> Iterator[Any]:
    """The model as transformers loads it, in fp32, with its first `depth` layers."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    if not checkpoint.loads_elsewhere:
        with _quiet():
            model = _assembled(checkpoint, depth, streamed=streamed)
        yield model
        return
    gguf: dict[str, Any] = {}
    with TemporaryDirectory(dir=scratch) as empty, _quiet():
        folder = checkpoint.path
        if checkpoint.is_gguf:
            # Apart from its neighbors, which transformers would take for the model's own.
            folder, gguf = Path(empty), {"gguf_file": "model.gguf"}
            copy_weights(checkpoint.path, folder / "model.gguf", depth=depth)
        elif index := incomplete_index(folder, checkpoint.config):
            folder = Path(empty)
            link_with_index(checkpoint.path, index, folder)
        try:
            config = AutoConfig.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True, **gguf
            )
            if checkpoint.is_gguf:
                _complete(config, checkpoint)
            if not checkpoint.spec.has_head:
                config.get_text_config().tie_word_embeddings = True  # it stores no head
            _shorten(config.get_text_config(), depth)
            config.return_dict, config.output_hidden_states = True, False
            config.output_attentions = False
            multimodal = config.get_text_config() is not config
            cls = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM
            loaded: Any = cls.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                attn_implementation="eager",  # the others leave out Gemma 2's soft cap
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=False,
                local_files_only=True,
                **gguf,
            )
        except Exception as error:
            _check_generation(folder)
            raise BadCheckpoint(
                f"transformers cannot load {checkpoint.name}, so that nothing can be compared with "
                f"it: {type(error).__name__}: {reason(error)}"
            ) from None
        model, info = loaded
        if missing := sorted(info["missing_keys"]):
            raise BadCheckpoint(
                f"transformers finds no {missing[0]} in {checkpoint.name} ({len(missing)} missing "
                "in all) and would initialize it at random; is a shard missing, or config.json "
                "from another model?"
            )
        remove_step_limits(model)
        yield _TextOnly(model.eval()) if multimodal else model.eval()


def _assembled(checkpoint: Checkpoint, depth: int, *, streamed: bool) -> Any:
    """The model that transformers builds from its own configuration, with edgelm's weights."""
    from transformers import AutoConfig

    config: Any = hf_config(checkpoint)
    if not checkpoint.is_gguf:
        config = AutoConfig.from_pretrained(
            checkpoint.path, trust_remote_code=False, local_files_only=True
        ).get_text_config()
    _shorten(config, depth)
    config.tie_word_embeddings = checkpoint.spec.tie_word_embeddings
    model = empty_model(config, torch.float32)
    if streamed:
        return _with_streamed_weights(model, checkpoint)
    wanted = model.state_dict().keys() & checkpoint.shapes.keys()
    tensors = {name: checkpoint.tensor(name).float() for name in sorted(wanted)}
    missing = model.load_state_dict(tensors, strict=False, assign=True).missing_keys
    model.tie_weights()
    left = [name for name, one in model.named_parameters() if one.is_meta]
    if left:
        raise BadCheckpoint(f"no weights for {left[0]} ({len(missing)} missing in all)")
    return model.eval()


def _with_streamed_weights(model: Any, checkpoint: Checkpoint) -> Any:
    embedding = stored_name(checkpoint.spec.family, EMBEDDING_WEIGHT)
    tied = checkpoint.spec.tie_word_embeddings

    def read(name: str) -> torch.Tensor:
        return checkpoint.tensor(embedding if tied and name == HEAD_WEIGHT else name).float()

    names = {name for name, _ in model.named_parameters()}
    if missing := sorted(names - checkpoint.shapes.keys() - {HEAD_WEIGHT if tied else ""}):
        raise BadCheckpoint(f"no weights for {missing[0]} ({len(missing)} missing in all)")
    stream_weights(model, checkpoint, read, checkpoint.rows)
    return model.eval()


def _check_generation(folder: Path) -> None:
    """Name generation_config.json where it is what transformers cannot load."""
    from transformers import GenerationConfig

    try:
        GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:  # there is none
        return
    except Exception as error:
        raise BadCheckpoint(
            f"{folder / 'generation_config.json'}: transformers cannot load it ({reason(error)}); "
            "correct or remove it"
        ) from None


class _TextOnly:
    """A multimodal model that is given text alone."""

    def __init__(self, whole: Any) -> None:
        self.whole = whole
        self.config = whole.config.get_text_config()
        self.model = whole.model.language_model

    def __call__(self, **inputs: Any) -> Any:
        return self.whole(**inputs)


def _complete(config: Any, checkpoint: Checkpoint) -> None:
    """What transformers' reader of GGUF files leaves out, as llama.cpp has it.

    Gemma's attention scale depends on the size of the model and has no field in the file; scaled
    rotary embeddings and, of some architectures, the size of a head have one that it does not
    read. Sizes that are wrong do not fit the tensors, which is an error.
    """
    ours = hf_config(checkpoint)
    config.vocab_size = checkpoint.spec.vocab_size
    config.head_dim = checkpoint.spec.head_dim
    config.pad_token_id = None  # changes no logits, and is not among the metadata copied
    if hasattr(ours, "query_pre_attn_scalar"):
        config.query_pre_attn_scalar = ours.query_pre_attn_scalar
    if checkpoint.config.get("rope_scaling"):
        config.rope_parameters = ours.rope_parameters
        config.max_position_embeddings = ours.max_position_embeddings


def _shorten(config: Any, depth: int) -> None:
    """Leave a configuration its first `depth` layers."""
    if depth == config.num_hidden_layers:
        return
    config.num_hidden_layers = depth
    for name in ("layer_types", "no_rope_layers", "layer_rope_theta"):
        # Falcon-H1's class derives the list from the number of layers.
        if len(getattr(config, name, None) or ()) > depth:
            setattr(config, name, getattr(config, name)[:depth])


def _compare(
    reference: Reference, head: torch.Tensor, other: Any, stretch: _Stretch, depth: int
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
        return reference.model.model(  # type: ignore[no-any-return]
            input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state


@contextmanager
def _depth(reference: Reference, depth: int) -> Iterator[None]:
    """Let the reference run its first `depth` layers in this block."""
    config = reference.model.model.config
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and advice, which are about loading."""
    from transformers.utils import logging

    # Not as an attribute of `transformers`: its lazy module loses those of early imports.
    gguf_reader: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    bar = gguf_reader.tqdm
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # As of 5.23 this one obeys no setting.
    gguf_reader.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        gguf_reader.tqdm = bar
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
