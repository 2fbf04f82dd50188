"""Hugging Face transformers on torch, unquantized, with its default attention and dynamic cache.

In bf16, or in fp32 on a machine that multiplies it faster: a CPU without bf16 units emulates it.
"""

import time
from pathlib import Path
from typing import Any

import torch
import transformers

from edgelm.bench.engines.protocol import Logits, Tokens, serve


class Transformers:
    """A Hugging Face folder."""

    def load(self, options: dict[str, Any]) -> dict[str, Any]:
        torch.set_num_threads(options["threads"])
        folder = Path(options["path"])
        dtype = _faster_type(
            transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        )
        started = time.perf_counter()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=False
        ).eval()
        loaded = time.perf_counter()
        config = self.model.config
        head_dim = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        per_token = (
            2 * dtype.itemsize * config.num_hidden_layers * config.num_key_value_heads * head_dim
        )
        self.reset()
        name = {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
        parameters = sum(p.numel() for p in self.model.parameters())
        return {
            "load_ms": 1e3 * (loaded - started),
            "vocab_size": config.vocab_size,
            "context": options["context"],
            "kv": name,
            "kv_bytes": per_token * options["context"],
            "weight_bytes": dtype.itemsize * parameters,
            "version": transformers.__version__,
            "options": f"threads {options['threads']}, torch {torch.__version__}, {name}, cache "
            "grows with the sequence",
        }

    def reset(self) -> None:
        self.cache = transformers.DynamicCache()

    def prefill(self, tokens: Tokens) -> None:
        self._forward(tokens, 1)

    def step(self, token: int) -> None:
        self._forward([token], 1)

    def logits(self, tokens: Tokens) -> Logits:
        self.reset()
        rows: Logits = self._forward(tokens, 0).float().numpy()
        return rows

    def _forward(self, tokens: Any, keep: int) -> torch.Tensor:
        with torch.inference_mode():
            out = self.model(
                input_ids=torch.as_tensor(tokens)[None],
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=keep,
            )
        logits: torch.Tensor = out.logits[0]
        return logits


def _faster_type(config: Any) -> torch.dtype:
    """The type in which a product of one token with a layer of the model takes less time."""
    seconds = {}
    for dtype in (torch.bfloat16, torch.float32):
        layer = torch.nn.Linear(config.hidden_size, config.intermediate_size, False, dtype=dtype)
        token = torch.ones(1, config.hidden_size, dtype=dtype)
        times = []
        with torch.inference_mode():
            for _ in range(9):
                begun = time.perf_counter()
                layer(token)
                times.append(time.perf_counter() - begun)
        seconds[dtype] = min(times[1:])
    return min(seconds, key=lambda dtype: seconds[dtype])


if __name__ == "__main__":
    serve(Transformers())
