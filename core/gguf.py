"""Read a GGUF file as a Hugging Face checkpoint (format: ggml docs/gguf.md, versions 2 and 3).

Only the header is parsed here, which takes milliseconds where the `gguf` package's reader takes
seconds on a large vocabulary; blocks are dequantized by that package, tensor by tensor.
"""

import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgelm.errors import BadCheckpoint, UnknownName

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9

# GGUF architecture -> model_type. Mistral files carry the architecture `llama`.
_MODEL_TYPES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
}

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
_GEMMA_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


class TensorInfo(NamedTuple):
    """Where a tensor lies; `shape` is row-major, as Hugging Face writes it."""

    shape: tuple[int, ...]
    ggml_type: int
    offset: int


class GgufFile:
    """A mapped GGUF file: metadata, configuration and tensors under Hugging Face names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            try:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:
                raise BadCheckpoint(f"{path} is empty; download it again") from None
        try:
            self.metadata, infos, self._data = _Header(self._map).parse()
        except (struct.error, IndexError, UnicodeDecodeError):
            raise BadCheckpoint(f"{path} ends inside its header; download it again") from None
        except ValueError as error:
            raise BadCheckpoint(f"{path}: {error}") from None
        self.architecture = str(self.metadata.get("general.architecture"))
        if self.architecture not in _MODEL_TYPES:
            raise UnknownName(
                f"unknown architecture {self.architecture!r} in {path.name}; known in GGUF files: "
                f"{', '.join(sorted(_MODEL_TYPES))}; for other families use the safetensors folder"
            )
        self.tensors = {self._hf_name(name): info for name, info in infos.items()}

    def config(self) -> dict[str, Any]:
        """The `config.json` that this file amounts to."""

        def get(key: str, default: Any = None) -> Any:
            return self.metadata.get(f"{self.architecture}.{key}", default)

        heads = get("attention.head_count")
        hidden = get("embedding_length")
        head_dim = get("attention.key_length") or (hidden // heads if hidden and heads else None)
        config = {
            "model_type": _MODEL_TYPES[self.architecture],
            "num_hidden_layers": get("block_count"),
            "hidden_size": hidden,
            "intermediate_size": get("feed_forward_length"),
            "num_attention_heads": heads,
            "num_key_value_heads": get("attention.head_count_kv"),
            "head_dim": head_dim,
            "vocab_size": self._vocab_size(),
            "max_position_embeddings": get("context_length"),
            "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
            "rope_theta": get("rope.freq_base", 10_000.0),
            "sliding_window": get("attention.sliding_window"),
            "attn_logit_softcapping": get("attn_logit_softcapping"),
            "final_logit_softcapping": get("final_logit_softcapping"),
            "tie_word_embeddings": "lm_head.weight" not in self.tensors,
            # llama.cpp has no field for it and scales by the head size, as all Gemmas do but 2-27B.
            "query_pre_attn_scalar": head_dim if self.architecture.startswith("gemma") else None,
            "mlp_bias": "model.layers.0.mlp.down_proj.bias" in self.tensors,
            "attention_bias": self.architecture == "llama"
            and "model.layers.0.self_attn.q_proj.bias" in self.tensors,
            "rope_scaling": self._rope_scaling(),
            "bos_token_id": self.metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.metadata.get("tokenizer.ggml.eos_token_id"),
            "pad_token_id": self.metadata.get("tokenizer.ggml.padding_token_id"),
        }
        rotated = get("rope.dimension_count")
        if rotated and head_dim and rotated != head_dim:
            config["partial_rotary_factor"] = rotated / head_dim
        return {key: value for key, value in config.items() if value is not None}

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """One tensor, dequantized to fp32, in Hugging Face's layout."""
        from gguf import GGMLQuantizationType
        from gguf.constants import GGML_QUANT_SIZES
        from gguf.quants import dequantize

        info = self.tensors[name]
        try:
            kind = GGMLQuantizationType(info.ggml_type)
        except ValueError:
            raise BadCheckpoint(
                f"{self.path}: {name} is stored as ggml type {info.ggml_type}, which the installed "
                "gguf package does not know; upgrade it (pip install -U gguf)"
            ) from None
        block, block_bytes = GGML_QUANT_SIZES[kind]
        count = int(np.prod(info.shape))
        size = count // block * block_bytes
        start = self._data + info.offset
        if start + size > len(self._map):
            raise BadCheckpoint(
                f"{self.path} is truncated: {name} ends at byte {start + size}, the file has "
                f"{len(self._map)}; download it again"
            )
        raw = np.frombuffer(self._map, dtype=np.uint8, count=size, offset=start)
        rows = info.shape[0] if len(info.shape) > 1 else 1
        if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            values = raw.view(np.float32 if kind == GGMLQuantizationType.F32 else np.float16)
        else:
            values = dequantize(raw.reshape(rows, -1), kind)
        tensor = values.astype(np.float32).reshape(info.shape)
        return self._from_ggml(name, tensor)

    def _from_ggml(self, name: str, tensor: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if self.architecture == "llama" and ".self_attn.q_proj." in name:
            return _unpermute(tensor, self.metadata["llama.attention.head_count"])
        if self.architecture == "llama" and ".self_attn.k_proj." in name:
            heads = self.metadata["llama.attention.head_count"]
            return _unpermute(tensor, self.metadata.get("llama.attention.head_count_kv", heads))
        if self.architecture.startswith("gemma") and "norm" in name:
            return tensor - 1.0  # llama.cpp stores 1 + weight
        return tensor

    def _vocab_size(self) -> int | None:
        embedding = self.tensors.get("model.embed_tokens.weight")
        return embedding.shape[0] if embedding else None

    def _rope_scaling(self) -> dict[str, Any] | None:
        kind = self.metadata.get(f"{self.architecture}.rope.scaling.type")
        if "rope_freqs.weight" in self.tensors or "rope_factors_short.weight" in self.tensors:
            raise BadCheckpoint(
                f"{self.path.name} stores RoPE factors as a tensor, which is not read; "
                "use the model's safetensors folder"
            )
        if kind in (None, "none"):
            return None
        factor = self.metadata.get(f"{self.architecture}.rope.scaling.factor", 1.0)
        original = self.metadata.get(f"{self.architecture}.rope.scaling.original_context_length")
        return {
            "rope_type": kind,
            "factor": factor,
            "original_max_position_embeddings": original,
        }

    def _hf_name(self, name: str) -> str:
        if name in _TOP_NAMES:
            return _TOP_NAMES[name]
        if not name.startswith("blk."):
            return name
        if name.count(".") != 3:
            return name  # not a weight of any decoder we know; the shape check will say so
        _, layer, part, kind = name.split(".")
        names = _LAYER_NAMES | (_GEMMA_NAMES if self.architecture.startswith("gemma") else {})
        part = names.get(part, part)
        if self.architecture == "phi3" and part == "mlp.up_proj":
            part = "mlp.gate_up_proj"
        return f"model.layers.{layer}.{part}.{kind}"


def _unpermute(tensor: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    # llama.cpp interleaves the two rotary halves of a head; Hugging Face keeps them apart.
    half = tensor.shape[0] // heads // 2
    pairs = tensor.reshape(heads, half, 2, *tensor.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(tensor.shape)


class _Header:
    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def parse(self) -> tuple[dict[str, Any], dict[str, TensorInfo], int]:
        if self.data[:4] != b"GGUF":
            raise ValueError("not a GGUF file (its first four bytes are not 'GGUF')")
        self.at = 4
        version = self.scalar("I")
        if version not in (2, 3):
            raise ValueError(f"GGUF version {version} is not read; versions 2 and 3 are")
        tensors, keys = self.scalar("Q"), self.scalar("Q")
        metadata = {}
        for _ in range(keys):
            key = self.string()
            metadata[key] = self.value(self.scalar("I"))
        infos = {}
        for _ in range(tensors):
            name = self.string()
            dims = [self.scalar("Q") for _ in range(self.scalar("I"))]
            kind, offset = self.scalar("I"), self.scalar("Q")
            infos[name] = TensorInfo(tuple(reversed(dims)), kind, offset)
        alignment = metadata.get("general.alignment", 32)
        return metadata, infos, -(-self.at // alignment) * alignment

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize(code)
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        text = self.data[self.at : self.at + length]
        if len(text) != length:
            raise IndexError
        self.at += length
        return text.decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item, count = self.scalar("I"), self.scalar("Q")
            if item in _SCALARS:
                values = struct.unpack_from(f"<{count}{_SCALARS[item]}", self.data, self.at)
                self.at += struct.calcsize(f"<{count}{_SCALARS[item]}")
                return values
            read: Callable[[], Any] = self.string if item == _STRING else lambda: self.value(item)
            return [read() for _ in range(count)]
        if kind not in _SCALARS:
            raise ValueError(f"metadata of unknown type {kind}")
        return self.scalar(_SCALARS[kind])
