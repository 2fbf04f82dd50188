"""A checkpoint as a Hugging Face model in memory, and a model as a checkpoint on disk."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from edgelm.checkpoint.gguf.reader import GgufFile
from edgelm.checkpoint.gguf.tokenizer import write_for_transformers
from edgelm.checkpoint.meta_model import empty_model, hf_config
from edgelm.checkpoint.source import Checkpoint, open_checkpoint
from edgelm.checkpoint.weights.own_sizes import padded_tensors
from edgelm.compress.run.distributed import is_main_process
from edgelm.errors import BadCheckpoint, BadInput
from edgelm.reasons import reason
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.families.table import FAMILIES
from edgelm.spec.layers.mixers import NoMixer
from edgelm.spec.tensor_names import stored_name
from edgelm.spec.tensor_shapes import EMBEDDING_WEIGHT

Model = Any  # a causal language model of transformers, which ships no types
Tokenizer = Any


def spec_of(model: Model) -> DecoderSpec:
    """The architecture of a `transformers` model, from its configuration."""
    return DecoderSpec.from_hf(model.config.to_dict())


def load_model(
    source: str | Path | Checkpoint,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Model:
    """The causal language model of a folder, a hub id or a GGUF file, in eval mode.

    Tensors are read and converted one by one, so that loading needs the memory of the model
    and of its largest matrix.

    Raises:
        BadInput, BadCheckpoint, UnknownName: as `edgelm.checkpoint.source.open_checkpoint`.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    check_has_head(checkpoint.spec)
    config = hf_config(checkpoint)
    state = {
        name: checkpoint.tensor(name).to(device, dtype, copy=True) for name in checkpoint.shapes
    }
    return build_model(config, state)


def check_has_head(spec: DecoderSpec) -> None:
    """Raise BadInput for an embedding model: it has no next token to learn from."""
    if not spec.has_head:
        raise BadInput(
            "an embedding model cannot be compressed: importance and distillation compare next "
            "tokens, and it predicts none; edge-export quantizes it"
        )


def build_model(config: Any, state: dict[str, torch.Tensor]) -> Model:
    """A model around existing tensors, in eval mode; nothing is copied.

    Raises:
        BadCheckpoint: tensors that do not match the configuration.
    """
    embedding = state[stored_name(config.model_type, EMBEDDING_WEIGHT)]
    # All but eager attention leave out Gemma 2's soft cap and Granite's sinks.
    capped = getattr(config, "attn_logit_softcapping", None)
    eager = capped or FAMILIES[config.model_type].attention_sinks
    attention = "eager" if eager else "sdpa"
    model = empty_model(config, embedding.dtype, attention)
    if config.tie_word_embeddings:
        state = state | {"lm_head.weight": embedding}
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    if missing or unexpected:
        raise BadCheckpoint(
            f"the weights do not match the configuration: {len(missing)} missing "
            f"{missing[:2]}, {len(unexpected)} unexpected {unexpected[:2]}; is config.json from "
            "another model?"
        )
    model.tie_weights()
    model.requires_grad_(True)
    for name in _unused_norms(spec_of(model)):
        model.get_submodule(name).requires_grad_(False)
    return model.to(embedding.device).eval()


def _unused_norms(spec: DecoderSpec) -> list[str]:
    """Norms whose output nothing reads, since their half of the layer is left out.

    They get no gradients, for which several processes would wait.
    """
    if not spec.has_own_sizes or spec.norms == "post" or spec.shares_norm:
        return []  # with one norm for both halves, it is read
    before_mlp = "post_attention" if spec.norms == "pre" else "pre_feedforward"
    unused = [
        f"model.layers.{index}.{name}_layernorm"
        for index, layer in enumerate(spec.layers)
        for name, is_unused in (
            ("input", isinstance(layer.mixer, NoMixer)),
            (before_mlp, not spec.mlp_size(layer)),
        )
        if is_unused
    ]
    return [stored_name(spec.family, name) for name in unused]


def load_tokenizer(source: str | Path | Checkpoint) -> Tokenizer:
    """The tokenizer of a folder, a hub id or a GGUF file.

    Raises:
        BadCheckpoint: it has none that `transformers` can load.
    """
    from transformers import AutoTokenizer

    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    path = checkpoint.path
    try:
        if checkpoint.is_gguf:
            with TemporaryDirectory() as folder:
                write_for_transformers(GgufFile(path).metadata, Path(folder))
                return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    except Exception as error:  # tokenizers raises plain ones
        raise BadCheckpoint(
            f"{path} has no tokenizer that transformers can load ({reason(error)}); a folder "
            "needs tokenizer.json next to its weights"
        ) from None


def check_vocabulary(rows: int, tokenizer: Tokenizer) -> None:
    """Raise BadCheckpoint if the tokenizer has ids that the model has no embedding for.

    More embeddings than tokens are common: the table is padded to a multiple (Qwen 2.5 has 151,936
    rows for 151,665 tokens).
    """
    if len(tokenizer) > rows:
        raise BadCheckpoint(
            f"tokenizer and model vocabulary disagree: the tokenizer has {len(tokenizer):,} "
            f"tokens, the model embeddings for {rows:,}; is the tokenizer from another model?"
        )


def check_same_tokenizer(teacher: Tokenizer, student: Tokenizer) -> None:
    """Raise BadCheckpoint unless both map every token to the same id: logits are compared by id."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    differing = [token for token, index in ours.items() if theirs.get(token) != index]
    if differing or len(ours) != len(theirs):
        example = f", e.g. {differing[0]!r}" if differing else ""
        raise BadCheckpoint(
            f"teacher and student have different tokenizers ({len(theirs):,} and {len(ours):,} "
            f"tokens; {len(differing):,} of the student's have other ids in the teacher{example}); "
            "distillation on logits needs one vocabulary, so prune the student from this teacher"
        )


def is_sharded(model: Model) -> bool:
    """Whether this process has only a part of some parameters (FSDP2)."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def gather_full_model(model: Model) -> Model:
    """A model with all parameters on this process; the same model unless FSDP2 shards it."""
    if not is_sharded(model):
        return model
    return build_model(
        model.config,
        {
            name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            for name, tensor in model.state_dict().items()
            if not (model.config.tie_word_embeddings and name == "lm_head.weight")
        },
    )


def save_model(model: Model, tokenizer: Tokenizer, folder: Path, dtype: torch.dtype) -> None:
    """Write a plain checkpoint: safetensors, configuration with `head_dim`, tokenizer.

    Layers with sizes of their own are padded with zeros, so that transformers loads the file too.
    The model in memory keeps its type. With several processes, the main one writes.
    """
    if not is_main_process():
        return
    from transformers import GenerationConfig

    config, spec = model.config, spec_of(model)
    state = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in model.state_dict().items()
        if not (config.tie_word_embeddings and name == "lm_head.weight")
    }
    if spec.has_own_sizes:
        state = dict(padded_tensors(spec, state))
    if not spec.has_layer_heads and getattr(config, "head_dim", None) is None:
        config.head_dim = config.hidden_size // config.num_attention_heads
    if not model.generation_config:
        model.generation_config = GenerationConfig.from_model_config(config)
    model.save_pretrained(folder, state_dict=state)
    # save_pretrained writes the type of the model in memory, by which others would load the file.
    path = folder / "config.json"
    written = json.loads(path.read_text(encoding="utf-8")) | {
        "dtype": str(dtype).removeprefix("torch.")
    }
    path.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(folder)
