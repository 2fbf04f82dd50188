"""A tiny model that has a tokenizer, a chat template and a model card: a whole source folder."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.checkpoints.models import tiny_model

VOCAB = 320
CONTEXT = 128
SPECIAL = ["<pad>", "<s>", "</s>", "<|end|>"]
TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}<|end|>{% endfor %}"
_SENTENCES = [
    "The miller waits until the level outside has dropped below the wheel.",
    "Why is the sky blue? Because small molecules scatter short waves more than long ones.",
    "Garnets up to a centimetre across are common, and thin lenses of marble mark former beds.",
]


def tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE of 320 tokens: the bytes, a few merges, four special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    return tokenizer


def save_tiny_chat(
    folder: Path, name: str = "llama", *, context: int = CONTEXT, **over: Any
) -> Path:
    """Save a tiny model whose quantization error is about that of a real small model."""
    model = tiny_model(name, vocab_size=VOCAB, max_position_embeddings=context, **over)
    with torch.no_grad():
        # Layers whose weights spread less, as a trained model's do, leave rounding to 8 bits within
        # the gate and rounding to 4 bits beyond it, with a mixture between them.
        for parameter in model.base_model.layers.parameters():
            if parameter.ndim > 1:
                parameter *= 0.4
        model.get_input_embeddings().weight *= 0.8
    model.save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    generation = {"eos_token_id": 3, "temperature": 0.7}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# tiny\n")
    return folder
