"""Hugging Face transformers at its fastest on a GPU: fp16, a static cache, torch.compile.

A decode step is one graph of CUDA (`mode="reduce-overhead"`), as in transformers' own guide to
static caches; prompts run eagerly, since every length would need its own compilation.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from edgelm.bench.engines.protocol import Logits, Tokens, serve


class StaticCacheTransformers:
    """A Hugging Face folder."""

    def load(self, options: dict[str, Any]) -> dict[str, Any]:
        if options["threads"]:
            torch.set_num_threads(options["threads"])
        # On the processor, uncompiled, only its logits are of interest.
        self.device = options.get("device", "cuda")
        on_gpu = self.device == "cuda"
        if on_gpu and not torch.cuda.is_available():
            raise RuntimeError(
                f"it is measured on a GPU, and torch {torch.__version__} sees none; install a "
                f"torch that is built for CUDA in {sys.prefix}"
            )
        dtype = torch.float16 if on_gpu else torch.float32
        started = time.perf_counter()
        model = transformers.AutoModelForCausalLM.from_pretrained(
            Path(options["path"]), dtype=dtype, trust_remote_code=False
        )
        self.model = model.eval().to(self.device)
        self.cache = transformers.StaticCache(config=model.config, max_cache_len=options["context"])
        self.length = 0
        self.token, self.position = (
            torch.zeros((1, 1), dtype=torch.long, device=self.device) for _ in range(2)
        )
        self.forward = self.model.forward
        if on_gpu:
            torch.cuda.synchronize()
            self.forward = torch.compile(self.forward, mode="reduce-overhead", fullgraph=True)
        loaded = time.perf_counter()
        config = model.config
        width = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * width
        parameters = sum(p.numel() for p in model.parameters())
        return {
            "load_ms": 1e3 * (loaded - started),
            "vocab_size": config.vocab_size,
            "context": options["context"],
            "kv": "fp16" if on_gpu else "fp32",
            "kv_bytes": dtype.itemsize * per_token * options["context"],
            "weight_bytes": dtype.itemsize * parameters,
            "version": transformers.__version__,
            "device": "gpu" if on_gpu else "cpu",
            "options": f"torch {torch.__version__}, {dtype}, static cache"
            + (", torch.compile of the decode step in the warm-up round" if on_gpu else ""),
        }

    def reset(self) -> None:
        with torch.inference_mode():  # where its tensors were made
            self.cache.reset()
        self.length = 0

    def prefill(self, tokens: Tokens) -> None:
        self._prefill(tokens, keep=1)

    def step(self, token: int) -> None:
        self.token.fill_(token)
        self.position.fill_(self.length)
        with torch.inference_mode():
            out = self.forward(
                input_ids=self.token,
                position_ids=self.position,
                past_key_values=self.cache,
                use_cache=True,
            )
            out.logits[0].float().cpu()
        self.length += 1

    def logits(self, tokens: Tokens) -> Logits:
        self.reset()
        rows: Logits = self._prefill(tokens, keep=0).numpy()
        return rows

    def _prefill(self, tokens: Tokens, *, keep: int) -> torch.Tensor:
        end = self.length + len(tokens)
        with torch.inference_mode():
            out = self.model(
                input_ids=torch.as_tensor(tokens, device=self.device)[None],
                position_ids=torch.arange(self.length, end, device=self.device)[None],
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=keep,
            )
        self.length = end
        rows: torch.Tensor = out.logits[0].float().cpu()
        return rows


if __name__ == "__main__":
    serve(StaticCacheTransformers())
