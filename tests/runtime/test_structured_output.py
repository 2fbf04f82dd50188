"""Structured output of a model of random weights: whatever is sampled, the text is valid."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edgelm
from edgelm.errors import BadInput
from edgelm.runtime import LanguageModel, Message
from edgelm.runtime.generation.options import Options
from tests.schemas.json_schemas import json_schemas
from tests.schemas.schema_study import SAMPLINGS, outcome, save_bundle

HELLO: list[Message] = [{"role": "user", "content": "hello"}]
DATE = {"type": "regex", "regex": "[0-9]{4}-[0-9]{2}-[0-9]{2}"}
RECORD = {
    "type": "json_schema",
    "json_schema": {
        "name": "record",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {
                "color": {"enum": ["red", "blue"]},
                "count": {"maximum": 9, "minimum": 1, "type": "integer"},
            },
            "required": ["color", "count"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanguageModel]:
    with edgelm.load(save_bundle(tmp_path_factory.mktemp("random") / "bundle"), threads=1) as lm:
        yield lm


# `python -m tests.schemas.schema_study 500` runs all of them.
@pytest.mark.parametrize("number", range(0, 500, 53))
def test_schemas_of_many_kinds(random_model: LanguageModel, number: int) -> None:
    schema = json_schemas(500)[number]
    result, text = outcome(random_model, schema, number)
    assert result == "valid", (schema, text)


@pytest.mark.parametrize("options", [{}, *SAMPLINGS, {"frequency_penalty": 2.0}])
def test_every_sampler(lm: LanguageModel, options: Options) -> None:
    given: Options = {**options, "response_format": DATE, "seed": 3}
    reply = lm.generate("hello", **given)
    assert re.fullmatch(DATE["regex"], reply.text)
    assert (reply.finish_reason, reply.stop_reason) == ("stop", "grammar")


def test_streams_and_chats(lm: LanguageModel) -> None:
    options: Options = {"response_format": RECORD, "temperature": 1.0, "seed": 1}
    text = "".join(chunk.text for chunk in lm.stream(HELLO, **options))
    record = json.loads(text)
    assert record["color"] in ("red", "blue")
    assert 1 <= record["count"] <= 9
    assert lm.generate(HELLO, **options).text == text


def test_a_stop_string_ends_it_before(lm: LanguageModel) -> None:
    reply = lm.generate("hello", response_format=DATE, stop="-")
    assert re.fullmatch("[0-9]{4}", reply.text)
    assert reply.stop_reason == "stop_string"


def test_a_limit_cuts_it(lm: LanguageModel) -> None:
    reply = lm.generate("hello", response_format=DATE, max_tokens=3)
    assert (len(reply.tokens), reply.finish_reason) == (3, "length")


def test_the_end_token_is_chosen_only_where_the_text_is_complete(lm: LanguageModel) -> None:
    end = min(lm.eos_token_ids)
    reply = lm.generate(
        "hello",
        response_format={"type": "regex", "regex": "[a-z]{5,9}"},
        logit_bias={end: 1000.0},
    )
    # As soon as it may: at five letters, or at the first token that makes more of them.
    last = lm.tokenizer.decode([reply.tokens[-2]])
    assert len(reply.text) - len(last) < 5 <= len(reply.text)
    assert reply.stop_reason == "eos_token"


def test_a_processor_of_the_caller_cannot_allow_what_the_grammar_forbids(lm: LanguageModel) -> None:
    def insists(_: Any, logits: Any) -> Any:
        logits[:] = 0
        logits[200:] = 1000
        return logits

    reply = lm.generate("hello", response_format=DATE, logits_processors=[insists])
    assert re.fullmatch(DATE["regex"], reply.text)


def test_a_bias_that_leaves_no_token_is_an_error(lm: LanguageModel) -> None:
    digits = {int(lm.tokenizer.encode(str(n))[0]): float("-inf") for n in range(10)}
    with pytest.raises(BadInput, match="leave"):
        lm.generate("hello", response_format=DATE, logit_bias=digits)


def test_logprobs_are_the_model_s_own(lm: LanguageModel) -> None:
    free = lm.generate("hello", max_tokens=1, logprobs=1).chunks[0].top_logprobs[0]
    reply = lm.generate("hello", max_tokens=1, logprobs=1, response_format=DATE)
    bound = reply.chunks[0].top_logprobs[0]
    assert bound.token == free.token
    assert bound.logprob == pytest.approx(free.logprob, abs=1e-3)


def test_a_bad_format_is_refused_before_anything_runs(lm: LanguageModel) -> None:
    with pytest.raises(BadInput, match="regular expression of response_format"):
        lm.stream("hello", response_format={"type": "regex", "regex": "("})
    assert list(lm.session.tokens) == []


def test_two_threads_with_formats_of_their_own(lm: LanguageModel) -> None:
    texts: dict[int, str] = {}

    def run(number: int) -> None:
        pattern = {"type": "regex", "regex": f"{number}[a-z]{{6}}"}
        texts[number] = lm.generate("hello", response_format=pattern).text

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(re.fullmatch(f"{n}[a-z]{{6}}", text) for n, text in texts.items())
    assert len(texts) == 6


def test_importing_edgelm_does_not_import_llguidance(bundle: Path) -> None:
    program = (
        "import sys, edgelm; lm = edgelm.load(sys.argv[1]); lm.generate('a', max_tokens=1); "
        "assert 'llguidance' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(bundle)], check=True)
