"""Hashes of a model and a tokenizer in memory, by which a resumed run recognizes them."""

import hashlib
from typing import Any

import torch


def weights_sha256(model: Any) -> str:
    """SHA-256 over names, types and values of all weights, in hex; reads every weight once."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def tokenizer_sha256(tokenizer: Any) -> str:
    """SHA-256 over a fast tokenizer's vocabulary, rules and chat template, in hex."""
    content = tokenizer.backend_tokenizer.to_str() + str(tokenizer.chat_template)
    return hashlib.sha256(content.encode()).hexdigest()
