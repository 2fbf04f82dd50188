"""How a checkpoint is offered functions and how its calls are read: as its bundle would be.

The prompts and the parser are the runtime's, so that a bundle and its source differ in nothing but
their numbers.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgelm.checkpoint.source import Checkpoint
from edgelm.compress.evaluation.backend import Call, Conversation
from edgelm.errors import BadInput
from edgelm.export.bundle.text.tokenizer_files import write_tokenizer_files
from edgelm.runtime.text.answers.formats import answer_format
from edgelm.runtime.text.answers.parser import AnswerParser
from edgelm.runtime.text.answers.reasoning_limit import control_tokens
from edgelm.runtime.text.chat import ChatTemplate
from edgelm.runtime.text.special_tokens import read_special_tokens
from edgelm.runtime.text.tokenizer import Detokenizer, Tokenizer


class SourceTools:
    """The runtime's text side of a checkpoint.

    Raises:
        BadInput: the checkpoint has no chat template.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        with tempfile.TemporaryDirectory(prefix="edgelm-text-") as name:
            folder = Path(name)
            write_tokenizer_files(checkpoint, folder)
            self._tokenizer = Tokenizer(folder / "tokenizer.json")
            names = read_special_tokens(folder / "special_tokens_map.json") or {}
            template = folder / "chat_template.jinja"
            if not template.is_file():
                raise BadInput(
                    f"{checkpoint.name} has no chat template, which the task functions needs; use "
                    "an instruction-tuned model, or leave out the task"
                )
            self._template = ChatTemplate(template, special_tokens=names)
        self._format = answer_format(self._template.source)
        self._shown = {
            number: text
            for text, number in control_tokens(self._tokenizer).items()
            if self._format.shows(text)
        }

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Token ids of a conversation that offers tools, up to where the answer begins."""
        text = self._text(conversation)
        return [int(token) for token in self._tokenizer.encode(text, special=False)]

    def read(self, ids: Sequence[int], conversation: Conversation) -> tuple[str, tuple[Call, ...]]:
        """The text and the calls of an answer's token ids."""
        written = Detokenizer(self._tokenizer, self._shown)
        text = "".join(map(written.push, ids)) + written.flush()
        parser = AnswerParser(self._format, conversation.tools, self._text(conversation)[-200:])
        parts = [parser.push(text), parser.finish()]
        calls = tuple(call for part in parts for call in part.tool_calls)
        content = "".join(part.content for part in parts)
        return content, tuple(Call(call.name, call.parsed()) for call in calls)

    def _text(self, conversation: Conversation) -> str:
        messages = [dict(one) for one in conversation.messages]
        return self._template.render(messages, tools=conversation.tools)  # type: ignore[arg-type]
