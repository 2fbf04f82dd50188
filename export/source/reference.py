"""The source model as the gate's reference: Hugging Face's own modules, streamed.

The model is built without memory for its weights, which its modules read when they are called
(edgelm.export.source.streaming). Logits are never stored: any rows of them follow with one product
from the final hidden states.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from edgelm.checkpoint.meta_model import empty_model, hf_config
from edgelm.checkpoint.source import Checkpoint
from edgelm.export.source.head import Head, read_head
from edgelm.export.source.streaming import stream_weights
from edgelm.spec.decoder import Rope
from edgelm.spec.layers.altup import MIN_SQUARE
from edgelm.spec.rope import rotary_frequencies
from edgelm.spec.tensor_names import stored_name
from edgelm.spec.tensor_shapes import HEAD_BIAS

_PART = 2**24  # weights of the head that are converted at a time: 67 MB


class Reference:
    """Runs a checkpoint in fp32, layer by layer.

    `context` is the capacity that the export is for: it decides which of its two frequency tables
    a longrope model uses, where Hugging Face goes by the length of each prompt.
    """

    def __init__(self, checkpoint: Checkpoint, *, context: int | None = None) -> None:
        self.checkpoint = checkpoint
        self.spec = checkpoint.spec
        self.overrides: dict[str, torch.Tensor] = {}
        self._cached: dict[str, torch.Tensor] | None = None
        self.model = empty_model(hf_config(checkpoint), torch.float32).eval()
        if context is not None and self.depends_on_context:
            self._fix_frequencies(context)
        stream_weights(self.model, checkpoint, self._read, self._table_rows)

    @property
    def depends_on_context(self) -> bool:
        """Whether `context` changes what the model computes."""
        rope = self._rope()
        return rope is not None and rope.scaling.get("rope_type") == "longrope"

    def _rope(self) -> Rope | None:
        return next((layer.rope for layer in self.spec.layers if layer.rope), None)

    def _fix_frequencies(self, context: int) -> None:
        rope = self._rope()
        assert rope is not None
        frequencies = rotary_frequencies(rope, context, self.spec.max_position_embeddings)
        rotary = self.model.base_model.rotary_emb
        rotary.inv_freq = torch.from_numpy(frequencies).float()
        rotary.original_inv_freq = rotary.inv_freq
        rotary.long_inv_freq = rotary.inv_freq  # not recomputed for longer prompts

    def hidden_states(self, tokens: torch.Tensor, *, cache: Any = None) -> torch.Tensor:
        """Final hidden states [B, T, hidden], normed, of int64 tokens [B, T]."""
        with torch.inference_mode():
            states = self.model.base_model(
                input_ids=tokens, past_key_values=cache, use_cache=cache is not None
            )
        return states.last_hidden_state  # type: ignore[no-any-return]

    def final_states(self, states: torch.Tensor) -> torch.Tensor:
        """Final hidden states [B, T, hidden] of what the last layer returns."""
        if self.spec.altup is not None:
            states = self._joined_streams(states)
        norm = self.model.get_submodule(stored_name(self.spec.family, "model.norm"))
        return norm(states)  # type: ignore[no-any-return]

    def _joined_streams(self, streams: torch.Tensor) -> torch.Tensor:
        """The mean of the streams [streams, B, T, hidden], as Gemma 3n's model ends."""
        target = streams[0].square().mean(-1, keepdim=True).sqrt()
        total = streams[0]
        modules = self.model.base_model.altup_unembed_projections
        for stream, projection in zip(streams[1:], modules, strict=True):
            own = projection(stream)
            size = own.square().mean(-1, keepdim=True).clamp(min=MIN_SQUARE).sqrt()
            total = total + own * target / size
        return total / len(streams)

    def head(self) -> Head:
        """The head's matrix [vocab, hidden] in its stored type."""
        return read_head(self.checkpoint)

    def logits(self, hidden: torch.Tensor, head: Head) -> torch.Tensor:
        """Logits [rows, vocab] of final hidden states [rows, hidden], in fp32.

        The head is converted to fp32 a part at a time: it can be the largest matrix of all.
        """
        hidden = hidden / self.spec.logits_divisor
        parts = head.split(max(1, _PART // head.shape[1]))
        logits = torch.cat([hidden @ part.float().T for part in parts], -1)
        if self.spec.head_bias:
            logits += self._read(HEAD_BIAS) / self.spec.logits_divisor
        if cap := self.spec.logits_softcap:
            logits = torch.tanh(logits / cap) * cap
        return logits

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers."""
        return self.model.base_model.layers  # type: ignore[no-any-return]

    @contextmanager
    def cached_reads(self) -> Iterator[None]:
        """Keep what is read in this block, for callers that run a module several times."""
        self._cached = {}
        try:
            yield
        finally:
            self._cached = None

    def _table_rows(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        """Rows of a table in its stored type."""
        if name in self.overrides:
            return self.overrides[name][ids]
        return self.checkpoint.rows(name, ids)

    def _read(self, name: str) -> torch.Tensor:
        if name in self.overrides:
            return self.overrides[name]
        if self._cached is not None and name in self._cached:
            return self._cached[name]
        tensor = self.checkpoint.tensor(name).float()
        if self._cached is not None:
            self._cached[name] = tensor
        return tensor
