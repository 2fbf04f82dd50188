"""An answer taken apart while it is generated: no tag, nor a part of one, reaches the content.

Text that may be the beginning of a tag is held back until it is known. White space next to a tag
belongs to the tag. A call that cannot be read becomes content, as the model wrote it: an
application sees what happened. One that was cut is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from edgelm.runtime.text.answers.calls.tool_call import ToolCall
from edgelm.runtime.text.answers.formats import AnswerFormat, Tags, Tool

_CUT_TAG = 2  # characters of a tag; a single one, such as <, is more likely to be text


@dataclass(frozen=True, slots=True)
class AnswerPart:
    """What a piece of text added to each part of an answer."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


class AnswerParser:
    """Takes one answer apart.

    Args:
        answer_format: of the model's family.
        tools: the functions that the model may call; without any, calls are content.
        prompt: the end of the prompt, which may have begun the reasoning.
        single_call: whether the answer is complete with its first call.
    """

    def __init__(
        self,
        answer_format: AnswerFormat,
        tools: Sequence[Tool] = (),
        prompt: str = "",
        *,
        single_call: bool = False,
    ) -> None:
        calls = answer_format.calls if tools else None
        self._calls = calls
        self._tools = tools
        self._reasoning = answer_format.reasoning
        self._names = {tool.get("function", tool).get("name") for tool in tools}
        self._call_tags = {tags.begin: tags for tags in (calls.tags if calls else ())}
        self._separators = (*answer_format.hidden, *self._call_tags)
        self._buffer = ""
        self._open: Tags | None = None
        self._content, self._thoughts = _Part(), _Part(at_start=True)
        self._found: list[ToolCall] = []
        self._any_calls = False
        self._thinking = starts_reasoning(answer_format, prompt)
        self._single_call = single_call

    @property
    def complete(self) -> bool:
        """Whether nothing more is wanted."""
        return self._single_call and self._any_calls

    def push(self, text: str) -> AnswerPart:
        """Add text; return what is known with it."""
        self._buffer += text
        while self._step(final=False):
            pass
        return self._taken()

    def finish(self, *, cut: bool = False) -> AnswerPart:
        """The rest, at the end of the answer.

        Args:
            cut: whether the answer was ended from outside; a call that it was writing is left out,
                and so is the beginning of a tag.
        """
        while self._step(final=True):
            pass
        if self._open is not None:
            body, self._buffer = self._buffer, ""
            if not self._close_call(body, self._open) and not (cut and self._open.begin):
                self._content.add(self._open.begin + body)
        rest, self._buffer = self._buffer, ""
        begun = _overlap(rest, self._expected()) if cut else 0
        if begun >= _CUT_TAG or self._any_calls:  # the answer was ended within a tag
            rest = rest[: len(rest) - begun]
        (self._thoughts if self._thinking else self._content).add(rest)
        self._thoughts.begin()
        if not self._any_calls:
            self._content.release_space()
        return self._taken()

    def _taken(self) -> AnswerPart:
        found, self._found = tuple(self._found), []
        return AnswerPart(self._content.take(), self._thoughts.take(), found)

    def _step(self, *, final: bool) -> bool:
        """Handle the next tag of the buffer; False if it has no complete one."""
        if self._open is not None:
            return self._step_call(self._open)
        if self._begins_bare():
            self._open = Tags("", "")
            return True
        part = self._thoughts if self._thinking else self._content
        tags = self._expected()
        at, tag = _first(self._buffer, tags)
        if tag and not final and _may_grow(self._buffer[at:], tags):
            part.add(self._buffer[:at])
            self._buffer = self._buffer[at:]
            return False
        if not tag:
            ready = len(self._buffer) - _overlap(self._buffer, tags)
            part.add(self._buffer[:ready])
            self._buffer = self._buffer[ready:]
            return False
        part.add(self._buffer[:at])
        self._buffer = self._buffer[at + len(tag) :]
        self._enter(tag)
        return True

    def _expected(self) -> tuple[str, ...]:
        if self._reasoning is None:
            return self._separators
        if self._thinking:
            # Some models call a tool without an end of their reasoning.
            return (self._reasoning.end, *self._call_tags)
        return (self._reasoning.begin, *self._separators)

    def _enter(self, tag: str) -> None:
        self._open = self._call_tags.get(tag)
        self._thinking = self._reasoning is not None and tag == self._reasoning.begin
        self._thoughts.begin()
        if self._open is None:  # else that is known when the call can be read
            self._content.begin()

    def _begins_bare(self) -> bool:
        """Whether the answer begins with a call that has no tag."""
        if self._calls is None or not self._calls.bare or self._thinking:
            return False
        return not self._content.any and not self._any_calls and self._buffer.lstrip()[:1] == "{"

    def _step_call(self, tags: Tags) -> bool:
        if not tags.end:
            return False
        end = self._buffer.find(tags.end)
        while end >= 0:
            # An end tag inside a text of the arguments is not the call's end.
            if self._close_call(self._buffer[:end], tags):
                self._buffer = self._buffer[end + len(tags.end) :]
                return True
            end = self._buffer.find(tags.end, end + 1)
        return False

    def _close_call(self, body: str, tags: Tags) -> bool:
        assert self._calls is not None
        try:
            calls = self._calls.read(body, self._tools)
            if not tags.begin and not all(call.name in self._names for call in calls):
                raise ValueError("JSON that is not a call")
        except ValueError:
            return False
        if not self.complete:
            self._found += calls[:1] if self._single_call else calls
        self._any_calls = True
        self._open = None
        self._content.begin()
        return True


class _Part:
    """Text of one part, without white space at its tags."""

    def __init__(self, *, at_start: bool = False) -> None:
        self._at_start = at_start  # white space is dropped
        self.any = False
        self._ready = self._space = ""

    def add(self, text: str) -> None:
        if self._at_start:
            text = text.lstrip()
        if not text:
            return
        self._at_start = False
        text = self._space + text
        bare = text.rstrip()
        self._ready += bare
        self._space = text[len(bare) :]
        self.any = self.any or bool(bare)

    def begin(self) -> None:
        """A tag stands here: drop white space before and after it."""
        self._space, self._at_start = "", True

    def release_space(self) -> None:
        self._ready, self._space = self._ready + self._space, ""

    def take(self) -> str:
        ready, self._ready = self._ready, ""
        return ready


def starts_reasoning(answer_format: AnswerFormat, prompt: str) -> bool:
    """Whether a prompt ends within the reasoning: its template has begun it for the model."""
    tags = answer_format.reasoning
    return tags is not None and prompt.rstrip().endswith(tags.begin.rstrip())


def _first(text: str, tags: Sequence[str]) -> tuple[int, str]:
    """Where the first of the tags is, and which; the longest of those that begin there."""
    found = [(at, -len(tag), tag) for tag in tags if (at := text.find(tag)) >= 0]
    at, _, tag = min(found, default=(-1, 0, ""))
    return at, tag


def _may_grow(text: str, tags: Sequence[str]) -> bool:
    """Whether more text may make a longer tag of this."""
    return any(len(tag) > len(text) and tag.startswith(text) for tag in tags)


def _overlap(text: str, tags: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins a tag."""
    return max(
        (
            n
            for tag in tags
            for n in range(1, min(len(text), len(tag) - 1) + 1)
            if text.endswith(tag[:n])
        ),
        default=0,
    )
