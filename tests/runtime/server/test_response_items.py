"""The items of a response: in the same places in the stream's events and in its final output."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

import edgelm
from edgelm.runtime import LanguageModel
from edgelm.runtime.generation.sampling.logits_processor import LogitsProcessor, Row
from edgelm.runtime.server.settings import ServerSettings
from tests.runtime.server.running import running
from tests.runtime.test_tools import TOOLS, tool_bundle

__all__ = ["tool_bundle"]  # a fixture
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>'
END = 2
TOOL: Any = [{"type": "function", **TOOLS[0]["function"]}]
Client = tuple[LanguageModel, openai.OpenAI]


@pytest.fixture(scope="module")
def served(tool_bundle: Path) -> Iterator[Client]:
    with (
        edgelm.load(tool_bundle, threads=1) as lm,
        running(lm, ServerSettings(model="tiny")) as (url, _),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        yield lm, client


@pytest.fixture
def dictate(served: Client, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the model answer with a text."""
    lm, _ = served
    answer = lm.answer

    def begin(text: str) -> None:
        def dictated(messages: Any, template: Any, options: Any, **more: Any) -> Any:
            tokens = [*lm.tokenizer.encode(text, special=False).tolist(), END]
            one: LogitsProcessor = Dictated(tokens)
            changed: Any = {**options, "logits_processors": [one]}
            return answer(messages, template, changed, **more)

        monkeypatch.setattr(lm, "answer", dictated)

    return begin


class Dictated:
    def __init__(self, tokens: list[int]) -> None:
        self.tokens = iter(tokens)

    def __call__(self, _: Sequence[int], logits: Row) -> Row:
        logits[:] = -np.inf
        logits[next(self.tokens)] = 0
        return logits


@pytest.mark.parametrize(
    ("answer", "kinds"),
    [
        ("<think>a</think>b", ["reasoning", "message"]),
        ("a<think>b</think>c", ["message", "reasoning"]),
        (f"a<think>b</think>{CALL}", ["message", "reasoning", "function_call"]),
        (f"{CALL}a", ["message", "function_call"]),
        (f"<think>a</think>{CALL}{CALL}", ["reasoning", "function_call", "function_call"]),
        ("<think>a</think>", ["reasoning", "message"]),
        ("", ["message"]),
    ],
)
def test_items_are_where_the_events_place_them(
    served: Client, dictate: Callable[[str], None], answer: str, kinds: list[str]
) -> None:
    _, client = served
    given: Any = {"model": "tiny", "input": "Rain?", "tools": TOOL, "temperature": 0}
    dictate(answer)
    whole = client.responses.create(**given)
    assert [item.type for item in whole.output] == kinds
    dictate(answer)
    events: list[Any] = list(client.responses.create(**given, stream=True))
    output = events[-1].response.output
    assert [item.type for item in output] == kinds
    for kind in ("response.output_item.added", "response.output_item.done"):
        placed = {e.output_index: e.item.id for e in events if e.type == kind}
        assert placed == {n: item.id for n, item in enumerate(output)}, kind
    for event in events:
        if hasattr(event, "item_id"):
            assert output[event.output_index].id == event.item_id
    for n, item in enumerate(output):
        deltas = [e.delta for e in events if hasattr(e, "delta") and e.output_index == n]
        begun = [e.part for e in events if e.type == "response.content_part.added"]
        text = item.arguments if item.type == "function_call" else item.content[0].text
        assert "".join(deltas) == text
        assert len(begun) == sum(kind != "function_call" for kind in kinds)


def test_the_clients_own_accumulation_is_the_output(
    served: Client, dictate: Callable[[str], None]
) -> None:
    _, client = served
    dictate(f"a<think>b</think>c{CALL}")
    with client.responses.stream(model="tiny", input="Rain?", tools=TOOL) as stream:
        snapshots = [
            event.snapshot
            for event in stream
            if event.type
            in ("response.output_text.delta", "response.function_call_arguments.delta")
        ]
        final = stream.get_final_response()
    assert final.output_text == "ac"
    assert snapshots[1:] == ["ac", final.output[-1].arguments]  # type: ignore[union-attr]
