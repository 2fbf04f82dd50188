"""The official client against a real socket: every answer is what the model itself gives."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from edgelm.runtime import LanguageModel, Message
from tests.runtime.text.grammar.bombs import CHAIN

ASKED: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
COUNT = 8
OPEN = {"2": -100, "3": -100}  # no answer ends by itself


def local(lm: LanguageModel, messages: list[Message] = ASKED, **options: Any) -> Any:
    bias = {int(token): value for token, value in OPEN.items()}
    return lm.generate(messages, **{"max_tokens": COUNT, "logit_bias": bias, **options})


def test_models(client: openai.OpenAI, served: LanguageModel) -> None:
    (model,) = client.models.list().data
    assert model.id == "tiny"
    assert client.models.retrieve("tiny").model_extra["context_length"] == served.context  # type: ignore[index]


def test_a_chat(client: openai.OpenAI, served: LanguageModel) -> None:
    expected = local(served)
    done = client.chat.completions.create(
        model="tiny", messages=ASKED, max_tokens=COUNT, logit_bias=OPEN
    )
    assert done.choices[0].message.content == expected.text
    assert done.choices[0].finish_reason == "length"
    assert done.usage is not None
    assert done.usage.prompt_tokens == expected.usage.prompt_tokens
    assert done.usage.completion_tokens == COUNT


@pytest.mark.usefixtures("drafts_pay")
def test_speculation_of_a_request_and_its_figures(client: openai.OpenAI) -> None:
    def ask(mode: str) -> Any:
        return client.chat.completions.create(
            model="tiny",
            messages=ASKED,
            max_tokens=60,
            logit_bias={**OPEN, "40": 100},  # the same token again and again
            extra_body={"speculation": mode},
        )

    plain, drafted = ask("off"), ask("lookup")
    assert drafted.choices[0].message.content == plain.choices[0].message.content
    assert plain.usage.completion_tokens_details.accepted_prediction_tokens == 0
    assert drafted.usage.completion_tokens_details.accepted_prediction_tokens > 0
    with pytest.raises(openai.BadRequestError, match="expected one of auto, off, lookup, draft"):
        ask("on")


def test_a_chat_as_a_stream(client: openai.OpenAI, served: LanguageModel) -> None:
    stream = client.chat.completions.create(
        model="tiny",
        messages=ASKED,
        max_completion_tokens=COUNT,
        logit_bias=OPEN,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(texts) == local(served).text
    assert sum(bool(text) for text in texts) > 2
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == COUNT
    assert len({chunk.id for chunk in chunks}) == 1


def test_sampling_seed_and_stop(client: openai.OpenAI, served: LanguageModel) -> None:
    options: Any = {"temperature": 0.9, "top_p": 0.8, "seed": 5, "frequency_penalty": 0.5}
    expected = local(served, **options)
    done = client.chat.completions.create(
        model="tiny",
        messages=ASKED,
        max_tokens=COUNT,
        logit_bias=OPEN,
        extra_body={"top_k": 0},
        **options,
    )
    assert done.choices[0].message.content == expected.text
    stop = expected.text[3:5]
    done = client.chat.completions.create(
        model="tiny",
        messages=ASKED,
        max_tokens=COUNT,
        logit_bias=OPEN,
        stop=[stop],
        **options,
    )
    assert done.choices[0].message.content == expected.text[: expected.text.index(stop)]
    assert done.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_several_answers(client: openai.OpenAI, stream: bool) -> None:
    given: Any = {"model": "tiny", "messages": ASKED, "max_tokens": COUNT, "n": 3, "seed": 1}
    given |= {"temperature": 1.5, "logit_bias": OPEN}
    whole = client.chat.completions.create(**given)
    texts = [choice.message.content for choice in whole.choices]
    assert len(set(texts)) > 1
    if stream:
        streamed = ["", "", ""]
        for chunk in client.chat.completions.create(**given, stream=True):
            streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert streamed == texts


def test_logprobs(client: openai.OpenAI, served: LanguageModel) -> None:
    expected = local(served, logprobs=3)
    done = client.chat.completions.create(
        model="tiny",
        messages=ASKED,
        max_tokens=COUNT,
        logit_bias=OPEN,
        logprobs=True,
        top_logprobs=3,
    )
    assert done.choices[0].logprobs is not None
    content = done.choices[0].logprobs.content
    assert content is not None
    assert [one.logprob for one in content] == pytest.approx(
        [one.logprob for one in expected.logprobs], abs=1e-4
    )
    assert [len(one.top_logprobs) for one in content] == [3] * COUNT
    # Half a character is its own bytes, not U+FFFD.
    assert bytes(b for one in content for b in one.bytes or []).decode("utf-8", "replace") == (
        done.choices[0].message.content
    )


def test_logprobs_of_parts_of_characters(client: openai.OpenAI, served: LanguageModel) -> None:
    parts = {int(token): 100 for token in served.tokenizer.encode("😀", special=False)}
    done = client.completions.create(
        model="tiny",
        prompt="The",
        max_tokens=2,
        logit_bias={str(t): b for t, b in parts.items()},
        logprobs=4,
        temperature=1,
    )
    logprobs = done.choices[0].logprobs
    assert logprobs is not None
    assert all(token.startswith("bytes:\\x") for token in logprobs.tokens or [])
    # No two of the most probable tokens have one name.
    assert [len(top) for top in logprobs.top_logprobs or []] == [4, 4]


def test_json_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"color": {"enum": ["red", "blue"]}},
        "required": ["color"],
        "additionalProperties": False,
    }
    done = client.chat.completions.create(
        model="tiny",
        messages=ASKED,
        temperature=1,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "color", "strict": True, "schema": schema},
        },
    )
    assert json.loads(done.choices[0].message.content or "")["color"] in ("red", "blue")


def test_completions(client: openai.OpenAI, served: LanguageModel) -> None:
    prompts = ["The miller", "Why is the sky"]
    expected = [local(served, prompt).text for prompt in prompts]  # type: ignore[arg-type]
    done = client.completions.create(
        model="tiny", prompt=prompts, max_tokens=COUNT, logit_bias=OPEN, logprobs=2
    )
    assert [choice.text for choice in done.choices] == expected
    logprobs = done.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.tokens or []) == len(logprobs.text_offset or []) == COUNT
    tokens = served.tokenizer.encode(prompts[0]).tolist()
    assert (
        client.completions.create(model="tiny", prompt=tokens, max_tokens=COUNT, logit_bias=OPEN)
        .choices[0]
        .text
        == expected[0]
    )
    streamed = ["", ""]
    for chunk in client.completions.create(
        model="tiny", prompt=prompts, max_tokens=COUNT, logit_bias=OPEN, stream=True
    ):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == expected


def test_responses(client: openai.OpenAI, served: LanguageModel) -> None:
    options: Any = {"max_output_tokens": COUNT, "extra_body": {"logit_bias": OPEN}}
    expected = local(served)
    done = client.responses.create(model="tiny", instructions="Be brief.", input="Why?", **options)
    assert done.output_text == expected.text
    assert done.status == "incomplete"
    assert done.usage is not None
    assert done.usage.total_tokens == expected.usage.total_tokens
    turns: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Why?"}]},
    ]
    events = list(client.responses.create(model="tiny", input=turns, stream=True, **options))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == (
        expected.text
    )
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert events[-1].type == "response.incomplete"


def test_a_response_has_what_was_requested(client: openai.OpenAI, served: LanguageModel) -> None:
    given: Any = {
        "model": "tiny",
        "input": "Why?",
        "max_output_tokens": 4,
        "metadata": {"trace": "7"},
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    }
    done = client.responses.create(**given)
    assert done.metadata == {"trace": "7"}
    output: Any = done.output
    logprobs = output[0].content[0].logprobs
    assert [len(one.top_logprobs) for one in logprobs] == [2] * 4
    events = list(client.responses.create(**given, stream=True))
    deltas = [one for e in events if e.type == "response.output_text.delta" for one in e.logprobs]
    assert [one.logprob for one in deltas] == pytest.approx(
        [one.logprob for one in logprobs], abs=1e-4
    )


@pytest.mark.parametrize("text", [None, 5, ["a"]])
def test_parts_of_a_response_that_are_not_text(client: openai.OpenAI, text: Any) -> None:
    turns: Any = [{"role": "user", "content": [{"type": "input_text", "text": text}]}]
    with pytest.raises(openai.BadRequestError, match=r"must have a type .* and a text"):
        client.responses.create(model="tiny", input=turns, max_output_tokens=1)


def test_many_at_once_get_their_own_answers(client: openai.OpenAI, served: LanguageModel) -> None:
    prompts = [f"{n} The miller {n}" for n in range(12)]
    expected = [local(served, prompt).text for prompt in prompts]  # type: ignore[arg-type]

    def ask(prompt: str) -> str:
        while True:
            try:
                done = client.completions.create(
                    model="tiny", prompt=prompt, max_tokens=COUNT, logit_bias=OPEN
                )
            except openai.RateLimitError:
                time.sleep(0.01)
                continue
            return done.choices[0].text

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, prompts)) == expected


ERRORS: dict[str, tuple[dict[str, Any], type[openai.APIStatusError], str]] = {
    "another model": ({"model": "gpt"}, openai.NotFoundError, "this server has 'tiny'"),
    "no messages": ({"messages": []}, openai.BadRequestError, "conversation is empty"),
    "unknown role": (
        {"messages": [{"role": "x", "content": "a"}]},
        openai.BadRequestError,
        "bad message",
    ),
    "too long": (
        {"messages": [{"role": "user", "content": "word " * 500}]},
        openai.BadRequestError,
        "the context holds 128",
    ),
    "temperature": ({"temperature": -1}, openai.BadRequestError, "temperature is -1"),
    "type": ({"max_tokens": "many"}, openai.BadRequestError, "max_tokens"),
    "bias": ({"logit_bias": {"a": 1}}, openai.BadRequestError, "expected token ids"),
    "schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
        openai.BadRequestError,
        "schema",
    ),
    "schema that overflows the stack": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": CHAIN}}},
        openai.BadRequestError,
        "nested too deeply",
    ),
    "logprobs": ({"top_logprobs": 3}, openai.BadRequestError, "needs logprobs"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("change", "kind", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_have_their_status(
    client: openai.OpenAI,
    change: dict[str, Any],
    kind: type[openai.APIStatusError],
    message: str,
    stream: bool,
) -> None:
    given: Any = {"model": "tiny", "messages": ASKED, "max_tokens": 2, "stream": stream, **change}
    with pytest.raises(kind, match=message):
        client.chat.completions.create(**given)


def test_a_prompt_beyond_the_context_has_its_code(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="tiny", prompt="word " * 500)
    assert error.value.code == "context_length_exceeded"


def test_no_embeddings(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="has no embeddings"):
        client.embeddings.create(model="tiny", input="a")
