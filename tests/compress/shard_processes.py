"""A model whose layers several processes divide: what each holds and computes.

python -m tests.compress.shard_processes FOLDER
"""

import os
import sys
from pathlib import Path

import torch

from edgelm.compress.sharding import shard_layers
from tests.checkpoints.models import tiny_model

TOKENS = torch.arange(24).view(2, 12)
FAMILIES = ("llama", "gemma3", "qwen3-moe", "lfm2")


def main() -> None:
    torch.set_num_threads(1)
    for family in FAMILIES:
        model = shard_layers(tiny_model(family), torch.device("cpu"))
        with torch.no_grad():
            logits = model(TOKENS).logits
        own = {
            name: parameter.to_local().numel()
            if hasattr(parameter, "to_local")
            else parameter.numel()
            for name, parameter in model.named_parameters()
        }
        rank = os.environ["RANK"]
        torch.save({"logits": logits, "own": own}, Path(sys.argv[1]) / f"{family}-{rank}.pt")


if __name__ == "__main__":
    main()
