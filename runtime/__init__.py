"""From a bundle to tokens. Needs numpy, tokenizers, jinja2, msgspec and one engine."""

from edgelm.runtime.async_stream import AsyncStream
from edgelm.runtime.chunk import Chunk, TokenLogprob
from edgelm.runtime.conversation import Chat
from edgelm.runtime.loading import load
from edgelm.runtime.logits_processor import AdvancingProcessor, LogitsProcessor
from edgelm.runtime.model import LanguageModel
from edgelm.runtime.options import Options
from edgelm.runtime.reply import Reply, Timings, Usage
from edgelm.runtime.sampler import Sampling
from edgelm.runtime.stream import Stream
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
