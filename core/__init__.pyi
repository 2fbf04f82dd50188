from edgelm.compress.pipeline import compress_model as compress_model
from edgelm.devices.planner.plan import plan as plan
from edgelm.errors import EdgeLMError as EdgeLMError
from edgelm.export.pipeline import export_model as export_model
from edgelm.runtime import Chat as Chat
from edgelm.runtime import Chunk as Chunk
from edgelm.runtime import LanguageModel as LanguageModel
from edgelm.runtime import Message as Message
from edgelm.runtime import Options as Options
from edgelm.runtime import Reply as Reply
from edgelm.runtime import Sampling as Sampling
from edgelm.runtime import Stream as Stream
from edgelm.runtime import load as load

__version__: str
__all__: list[str]
