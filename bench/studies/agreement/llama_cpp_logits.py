"""Convert checkpoints with llama.cpp's converter and compute logits with llama.cpp.

    PEERS/bin/python bench/studies/agreement/llama_cpp_logits.py PEERS/llama.cpp FOLDER...

Runs in the peers' environment, without edgelm. Each FOLDER holds a Hugging Face checkpoint and
`tokens.npy`; `model.gguf` (fp32, without a vocabulary) and `llama_cpp.npy`, the logits [tokens,
vocabulary], are written into it.
"""

import argparse
import copy
import importlib
import json
import pkgutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np


def _no_vocabulary(model: Any) -> None:
    writer = model.gguf_writer
    writer.add_tokenizer_model("none")
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if not any(key.endswith(".vocab_size") for key in writer.kv_data[0]):
        writer.add_vocab_size(model.hparams["vocab_size"])


def convert(conversion: Any, folder: Path) -> None:
    """Write model.gguf."""
    base = conversion.ModelBase
    # Some classes of transformers add fields, such as experts, to configurations without any.
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    base.load_hparams = staticmethod(lambda *_, **__: copy.deepcopy(config))
    architecture = config["architectures"][0]
    found = conversion.get_model_class(architecture, mmproj=False)
    inner = getattr(found, "Ministral3Model", None)  # it hands everything to another class
    if inner is not None:
        inner.set_vocab = _no_vocabulary
    fields = {"set_vocab": _no_vocabulary, "model_arch": found.model_arch, "no_mtp": True}
    fp32 = importlib.import_module("gguf").LlamaFileType.ALL_F32
    type(found.__name__, (found,), fields)(folder, fp32, folder / "model.gguf").write()


def logits(folder: Path) -> None:
    """Write llama_cpp.npy. llama.cpp's cache is fp16."""
    llama_cpp: Any = importlib.import_module("llama_cpp")
    tokens = np.load(folder / "tokens.npy").tolist()
    model = llama_cpp.Llama(
        str(folder / "model.gguf"), n_ctx=256, logits_all=True, verbose=False, flash_attn=False
    )
    model.eval(tokens)
    np.save(folder / "llama_cpp.npy", model.scores[: len(tokens)])


def main() -> None:
    """Convert and run every folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, help="the folder of llama.cpp's converter")
    parser.add_argument("folders", type=Path, nargs="+", help="of checkpoints")
    given = parser.parse_args()
    sys.path[:0] = [str(given.source), str(given.source / "gguf-py")]
    conversion = importlib.import_module("conversion")
    for module in pkgutil.iter_modules(conversion.__path__):
        with suppress(ImportError):  # of a family with packages of its own
            importlib.import_module(f"conversion.{module.name}")
    for folder in given.folders:
        convert(conversion, folder)
        logits(folder)


if __name__ == "__main__":
    main()
