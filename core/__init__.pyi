from edgelm.compress.pipeline import compress_model
from edgelm.devices.planner.plan import plan
from edgelm.errors import EdgeLMError
from edgelm.export.pipeline import export_model
from edgelm.runtime import (
    Chat,
    Chunk,
    LanguageModel,
    Message,
    Options,
    Reply,
    Sampling,
    Stream,
    load,
)

__version__: str
__all__ = [
    "Chat",
    "Chunk",
    "EdgeLMError",
    "LanguageModel",
    "Message",
    "Options",
    "Reply",
    "Sampling",
    "Stream",
    "__version__",
    "compress_model",
    "export_model",
    "load",
    "plan",
]
