"""onnxruntime-genai on a model folder of its own builder; its greedy search is part of a step."""

import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime_genai as genai

from edgelm.bench.engines.protocol import Logits, Tokens, serve


class GenAI:
    """A model folder with genai_config.json."""

    def load(self, options: dict[str, Any]) -> dict[str, Any]:
        folder = Path(options["path"])
        settings = json.loads((folder / "genai_config.json").read_text())
        settings["model"]["decoder"]["session_options"]["intra_op_num_threads"] = options["threads"]
        (folder / "genai_config.json").write_text(json.dumps(settings, indent=1))
        started = time.perf_counter()
        self.model = genai.Model(str(folder))
        self.context = options["context"]
        self.reset()
        loaded = time.perf_counter()
        genai.Tokenizer(self.model)
        decoder = settings["model"]["decoder"]
        kv_size = decoder["num_key_value_heads"] * decoder["head_size"]
        return {
            "load_ms": 1e3 * (loaded - started),
            "tokenizer_ms": 1e3 * (time.perf_counter() - loaded),
            "vocab_size": settings["model"]["vocab_size"],
            "context": self.context,
            "kv": "fp32",
            "kv_bytes": 2 * 4 * decoder["num_hidden_layers"] * kv_size * self.context,
            "weight_bytes": sum(p.stat().st_size for p in folder.glob("model.onnx*")),
            "version": getattr(genai, "__version__", "unknown"),
            "options": f"threads {options['threads']}, int4 blocks of 32, accuracy level 4, shared "
            "cache buffer; a step includes its greedy search",
        }

    def reset(self) -> None:
        parameters = genai.GeneratorParams(self.model)
        parameters.set_search_options(max_length=self.context, do_sample=False)
        self.generator = genai.Generator(self.model, parameters)

    def prefill(self, tokens: Tokens) -> None:
        self.generator.append_tokens(tokens.astype(np.int32))

    def step(self, token: int) -> None:
        self.generator.append_tokens(np.array([token], dtype=np.int32))

    def logits(self, tokens: Tokens) -> Logits:
        self.reset()
        self.prefill(tokens)
        rows: Logits = np.asarray(self.generator.get_output("logits"), dtype=np.float32)[0]
        if len(rows) != len(tokens):
            raise RuntimeError(f"the model gives {len(rows)} rows of logits for {len(tokens)}")
        return rows


if __name__ == "__main__":
    serve(GenAI())
