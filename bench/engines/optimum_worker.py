"""Hugging Face's optimum: `ORTModelForCausalLM` on ONNX Runtime, its cache passed each step."""

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from onnxruntime import SessionOptions
from optimum.onnxruntime import ORTModelForCausalLM

from edgelm.bench.engines.protocol import Logits, Tokens, serve


class Optimum:
    """A folder of optimum's exporter or quantizer."""

    def __init__(self) -> None:
        self.model: Any = None
        self.cache: Any = None
        self.length = 0

    def load(self, options: dict[str, Any]) -> dict[str, Any]:
        folder = Path(options["path"])
        settings = SessionOptions()
        settings.intra_op_num_threads = options["threads"]
        graphs = list(folder.glob("*.onnx"))
        if len(graphs) != 1:
            raise ValueError(f"{folder} holds {len(graphs)} ONNX graphs; expected one")
        [graph] = graphs
        started = time.perf_counter()
        self.model = ORTModelForCausalLM.from_pretrained(
            folder, file_name=graph.name, session_options=settings, local_files_only=True
        )
        loaded = time.perf_counter()
        config = self.model.config
        width = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        per_token = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * width
        return {
            "load_ms": 1e3 * (loaded - started),
            "vocab_size": config.vocab_size,
            "context": options["context"],
            "kv": "fp32",
            "kv_bytes": per_token * options["context"],
            "weight_bytes": sum(path.stat().st_size for path in folder.glob("*.onnx*")),
            "version": version("optimum-onnx"),
            "options": f"threads {options['threads']}, onnxruntime {version('onnxruntime')}, "
            f"transformers {version('transformers')}, {graph.stem}, cache copied at each step",
        }

    def reset(self) -> None:
        self.cache, self.length = None, 0

    def prefill(self, tokens: Tokens) -> None:
        self._forward(torch.from_numpy(tokens)[None])

    def step(self, token: int) -> None:
        self._forward(torch.tensor([[token]]))

    def logits(self, tokens: Tokens) -> Logits:
        self.reset()
        rows: Logits = self._forward(torch.from_numpy(tokens)[None]).float().numpy()
        return rows

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits [T, vocab] of [1, T] tokens after those in the cache."""
        self.length += ids.shape[1]
        with torch.inference_mode():
            out = self.model(
                input_ids=ids,
                attention_mask=torch.ones((1, self.length), dtype=torch.long),
                past_key_values=self.cache,
                use_cache=True,
            )
        self.cache = out.past_key_values
        rows: torch.Tensor = out.logits[0]
        return rows


if __name__ == "__main__":
    serve(Optimum())
