"""A checkpoint as transformers loads it, for comparison with edgelm's own reading.

Weights that transformers cannot load come from edgelm's readers, in the model that transformers
builds from its own configuration.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from edgelm.checkpoint.meta_model import empty_model, hf_config, remove_step_limits
from edgelm.checkpoint.source import Checkpoint
from edgelm.checkpoint.weights.files import incomplete_index
from edgelm.errors import BadCheckpoint
from edgelm.export.source.streaming import stream_weights
from edgelm.export.source_check.completed_index import link_with_index
from edgelm.export.source_check.gguf_copy import copy_weights
from edgelm.reasons import reason
from edgelm.spec.tensor_names import stored_name
from edgelm.spec.tensor_shapes import EMBEDDING_WEIGHT, HEAD_WEIGHT


@contextmanager
def transformers_model(
    checkpoint: Checkpoint, depth: int, scratch: Path, *, streamed: bool
) -> Iterator[Any]:
    """The model as transformers loads it, in fp32, with its first `depth` layers.

    Args:
        checkpoint: the source.
        depth: how many layers are wanted.
        scratch: a folder for files that transformers needs meanwhile.
        streamed: whether weights that edgelm reads are read when they are used.

    Raises:
        BadCheckpoint: transformers cannot load it, or would initialize a part at random.
    """
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
            if not checkpoint.is_gguf:
                _check_generation(checkpoint.path)
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
        self.base_model = whole.model.language_model

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
