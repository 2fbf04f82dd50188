"""What alignment refuses: examples, requests, models and folders."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgelm.compress.alignment.align import align
from edgelm.compress.alignment.settings import Alignment, Sft
from edgelm.errors import BadInput, MissingPackage
from tests.compress.alignment.examples import DPO, PAIRS, SFT, STRICT, TALKS, Write, call


@pytest.mark.parametrize(
    ("request_", "row", "message"),
    [
        (
            SFT,
            {"messages": [{"role": "user", "content": "x"}, call("x", "{")]},
            r"the arguments of a tool call of `messages\[1\]` are \"\{\", expected a JSON object",
        ),
        (
            SFT,
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]},
            r"a tool call of `messages\[0\]` is .*, expected e.g. .*add",
        ),
        (SFT, {"prompt": "x", "completion": "y", "tools": "no"}, "`tools` is .*list of JSON sch"),
        (
            DPO,
            {"prompt": "x", "chosen": [call("x", {})], "rejected": "y"},
            "preferences cannot hold tools",
        ),
        (SFT, {"text": "x"}, "no field `messages` or `prompt`, found text"),
        (SFT, {"prompt": "x"}, "no field `completion`, found prompt"),
        (SFT, {"prompt": "x", "completion": ""}, "`completion` is empty"),
        (SFT, {"messages": "x"}, "the last message is the user's, expected the assistant's"),
        (SFT, {"messages": []}, r"`messages` is \[\], expected a text or a list of messages"),
        (SFT, {"messages": [{"role": "user"}]}, r"`messages\[0\]` is .* expected `role` and `con"),
        (
            SFT,
            {"messages": [{"role": "assistant", "content": [{"type": "image"}]}]},
            r"the content of `messages\[0\]` is .* expected a text or parts such as .* images are",
        ),
        (
            SFT,
            {"messages": [{"role": "user", "content": {"text": "x"}}]},
            r"the content of `messages\[0\]` is .* expected a text or parts",
        ),
        (
            SFT,
            {"messages": [{"role": "user", "content": [{"type": "image", "text": "x"}]}]},
            r"the content of `messages\[0\]` is .* expected a text or parts",
        ),
        (
            SFT,
            {"messages": [{"role": "user", "content": ["x"]}]},
            r"the content of `messages\[0\]` is .* expected a text or parts",
        ),
        (
            SFT,
            {"messages": [{"role": "user", "content": []}]},
            r"the content of `messages\[0\]` is \[\], expected a text or parts",
        ),
        (SFT, {"messages": [{"role": "user", "content": "x"}]}, "last message is the user's"),
        (DPO, {"prompt": "x", "chosen": "y"}, "no field `rejected`, found prompt, chosen"),
        (DPO, {"prompt": "x", "chosen": "y", "rejected": "y"}, "expected a preference"),
        (
            DPO,
            {"prompt": "x", "chosen": "y", "rejected": [{"role": "user", "content": "z"}]},
            "`rejected` ends with the user's message",
        ),
        (
            SFT,
            {"prompt": [{"role": "system", "content": "x"}], "completion": "y"},
            "the chat template rejects the conversation .system.: no system",
        ),
    ],
)
def test_bad_examples_are_named(
    student: Any,
    tokenizer: Any,
    tmp_path: Path,
    write: Write,
    request_: Alignment,
    row: dict[str, Any],
    message: str,
) -> None:
    tokenizer.chat_template = STRICT
    good = TALKS[0] if isinstance(request_, Sft) else PAIRS[0]
    with pytest.raises(BadInput, match=rf"data\.jsonl:2: .*{message}"):
        align(student, tokenizer, request_, write([good, row]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_conversations_need_a_template(
    student: Any, tokenizer: Any, tmp_path: Path, write: Write
) -> None:
    tokenizer.chat_template = None
    with pytest.raises(BadInput, match=r"data.jsonl:1: a conversation, but the tokenizer has no"):
        align(student, tokenizer, SFT, write(TALKS), tmp_path / "run")


def test_unreadable_data_is_named(
    student: Any, tokenizer: Any, tmp_path: Path, write: Write
) -> None:
    with pytest.raises(BadInput, match="no such data file"):
        align(student, tokenizer, SFT, tmp_path / "none.jsonl", tmp_path / "run")
    with pytest.raises(BadInput, match="holds no examples"):
        align(student, tokenizer, SFT, write([]), tmp_path / "run")
    (tmp_path / "data.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="not UTF-8 text"):
        align(student, tokenizer, SFT, tmp_path / "data.jsonl", tmp_path / "run")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (replace(SFT, learning_rate=0), "learning_rate is 0"),
        (replace(SFT, epochs=-1), "epochs is -1"),
        (replace(SFT, max_steps=0), "max_steps is 0"),
        (replace(SFT, batch_size=0), "batch_size is 0"),
        (replace(SFT, warmup=1), "warmup is 1"),
        (replace(SFT, weight_decay=-1), "weight_decay is -1"),
        (replace(SFT, max_length=1), "max_length is 1,"),
        (
            replace(SFT, precision="fp8"),  # type: ignore[arg-type]
            "precision is 'fp8', expected auto, fp32 or bf16",
        ),
        (replace(SFT, max_length=999), "max_length is 999, the model's context is 128 tokens"),
        (replace(DPO, beta=0), "beta is 0"),
        (Alignment(), "Alignment is not an alignment method; expected Sft or Dpo"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_senseless_requests_are_refused(
    student: Any, tokenizer: Any, tmp_path: Path, write: Write, request_: Alignment, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        align(student, tokenizer, request_, write(TALKS), tmp_path / "run")


def test_models_that_cannot_be_trained_are_refused(
    student: Any, tokenizer: Any, tmp_path: Path, write: Write
) -> None:
    tokenizer.add_tokens(["stones"])
    with pytest.raises(
        BadInput, match=r"data.jsonl:1: the tokenizer produces token 320, the model"
    ):
        align(student, tokenizer, SFT, write(TALKS), tmp_path / "run")
    with pytest.raises(BadInput, match=r"the model is in bfloat16, .* load it in float32"):
        align(student.bfloat16(), tokenizer, SFT, write(TALKS), tmp_path / "run")


def test_a_folder_with_something_else_is_left_alone(
    student: Any, tokenizer: Any, tmp_path: Path, write: Write
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"exists and contains no align\.json"):
        align(student, tokenizer, SFT, write(TALKS), tmp_path / "run")


def test_trl_is_an_extra(
    student: Any,
    tokenizer: Any,
    tmp_path: Path,
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(MissingPackage, match=r"pip install 'edgelm\[align\]'"):
        align(student, tokenizer, SFT, write(TALKS), tmp_path / "run")
