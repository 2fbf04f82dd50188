"""The source model as the gate's reference: Hugging Face's own modules, streamed.

The model is built without memory for its weights; each leaf module reads its weights when it is
called and drops them when it returns. A pass over a batch thus needs memory for one matrix and
the activations, whatever the size of the model. Logits are never stored: any rows of them follow
with one product from the final hidden states.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from edgelm.checkpoint.meta_model import empty_model, hf_config
from edgelm.checkpoint.source import Checkpoint
from edgelm.export.source.memory import LARGE, give_back
from edgelm.spec.decoder import Rope
from edgelm.spec.rope import rotary_frequencies

_HEAD_ROWS = 16_384


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
        for name, module in self.model.named_modules():
            for buffer in module._buffers.keys() - module._non_persistent_buffers_set:
                if checkpoint.has(f"{name}.{buffer}"):  # xIELU's constants
                    module._buffers[buffer] = checkpoint.tensor(f"{name}.{buffer}").float()
        if context is not None and self.depends_on_context:
            self._fix_frequencies(context)
        for name, module in self.model.named_modules():
            if any(True for _ in module.parameters(recurse=False)):
                # A short convolution is never called: its parent reads its weight.
                parent = self.model.get_submodule(name.rpartition(".")[0])
                self._stream(name, module, parent if isinstance(module, nn.Conv1d) else module)

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
        rotary = self.model.model.rotary_emb
        rotary.inv_freq = torch.from_numpy(frequencies).float()
        rotary.original_inv_freq = rotary.inv_freq
        rotary.long_inv_freq = rotary.inv_freq  # not recomputed for longer prompts

    def hidden_states(self, tokens: torch.Tensor, *, cache: Any = None) -> torch.Tensor:
        """Final hidden states [B, T, hidden], normed, of int64 tokens [B, T]."""
        with torch.inference_mode():
            states = self.model.model(
                input_ids=tokens, past_key_values=cache, use_cache=cache is not None
            )
        return states.last_hidden_state  # type: ignore[no-any-return]

    def head(self) -> torch.Tensor:
        """The head's matrix [vocab, hidden] in its stored type, mapped from the file."""
        tied = self.spec.tie_word_embeddings
        return self.checkpoint.tensor("model.embed_tokens.weight" if tied else "lm_head.weight")

    def logits(self, hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        """Logits [rows, vocab] of final hidden states [rows, hidden], in fp32.

        The head is converted to fp32 a part at a time: it can be the largest matrix of all.
        """
        hidden = hidden / self.spec.logits_divisor
        logits = torch.cat([hidden @ part.float().T for part in head.split(_HEAD_ROWS)], -1)
        if cap := self.spec.logits_softcap:
            logits = torch.tanh(logits / cap) * cap
        return logits

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers."""
        return self.model.model.layers  # type: ignore[no-any-return]

    @contextmanager
    def cached_reads(self) -> Iterator[None]:
        """Keep what is read in this block, for callers that run a module several times."""
        self._cached = {}
        try:
            yield
        finally:
            self._cached = None

    def _stream(self, name: str, module: nn.Module, user: nn.Module) -> None:
        """Let a module have its own weights while `user` runs."""
        names = [parameter for parameter, _ in module.named_parameters(recurse=False)]
        empty = {parameter: module._parameters[parameter] for parameter in names}

        def read(_: nn.Module, __: Any) -> None:
            for parameter in names:
                tensor = self._read(f"{name}.{parameter}")
                module._parameters[parameter] = nn.Parameter(tensor, requires_grad=False)

        def read_rows(_: nn.Module, arguments: Any) -> tuple[torch.Tensor, ...]:
            # Of a table only what is looked up: Gemma 4's for every layer has billions of values.
            ids, places = torch.unique(arguments[0], return_inverse=True)
            rows = self._table_rows(f"{name}.weight", ids).float()
            module._parameters["weight"] = nn.Parameter(rows, requires_grad=False)
            return places, *arguments[1:]

        large = sum(parameter.numel() for parameter in empty.values() if parameter is not None)

        def drop(_: nn.Module, __: Any, ___: Any) -> None:
            module._parameters.update(empty)
            if large > LARGE:
                give_back()

        if isinstance(module, nn.Embedding):
            module.padding_idx = None  # only training reads it
            module.register_forward_pre_hook(read_rows)
        else:
            user.register_forward_pre_hook(read)
        user.register_forward_hook(drop)

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
