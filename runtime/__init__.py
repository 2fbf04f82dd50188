"""From a bundle to tokens. Needs numpy, tokenizers, jinja2, msgspec and one engine."""

from edgelm.runtime.conversation import Chat
from edgelm.runtime.generation.async_stream import AsyncStream
from edgelm.runtime.generation.chunk import Chunk, TokenLogprob
from edgelm.runtime.generation.options import Options
from edgelm.runtime.generation.reply import Reply, Timings, Usage
from edgelm.runtime.generation.sampling.logits_processor import AdvancingProcessor, LogitsProcessor
from edgelm.runtime.generation.sampling.settings import Sampling
from edgelm.runtime.generation.stream import Stream
from edgelm.runtime.loading import load
from edgelm.runtime.model import LanguageModel
from edgelm.runtime.text.chat import Message

__all__ = [
    "AdvancingProcessor",
    "AsyncStream",
    "Chat",
    "Chunk",
    "LanguageModel",
    "LogitsProcessor",
    "Message",
    "Options",
    "Reply",
    "Sampling",
    "Stream",
    "Timings",
    "TokenLogprob",
    "Usage",
    "load",
]
