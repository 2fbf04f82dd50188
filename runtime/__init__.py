"""From a bundle to tokens. Needs numpy, tokenizers, jinja2, msgspec and one engine."""

from edgelm.runtime.generator import Chunk, Generation, TokenLogprob
from edgelm.runtime.logits_processor import AdvancingProcessor, LogitsProcessor
from edgelm.runtime.model import Completion, LanguageModel, load
from edgelm.runtime.options import Options
from edgelm.runtime.sampler import Sampling
from edgelm.runtime.text.chat import Message

__all__ = [
    "AdvancingProcessor",
    "Chunk",
    "Completion",
    "Generation",
    "LanguageModel",
    "LogitsProcessor",
    "Message",
    "Options",
    "Sampling",
    "TokenLogprob",
    "load",
]
