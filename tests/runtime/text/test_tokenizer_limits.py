"""Parts of a tokenizer.json whose types are wrong are left to the library's own errors."""

from typing import Any

import msgspec
import pytest

from edgelm.errors import BadBundle
from edgelm.runtime.text.tokenizer_limits import (
    MAX_VALUES,
    check_ids,
    check_pieces,
    check_pipeline,
    check_values,
)

TEMPLATE: dict[str, Any] = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A"}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
}
WRONG: list[Any] = [None, 2**63, 1.5, "text", True, [[]], [None], {"a": 1}, {"a": {"ids": 7}}]


@pytest.mark.parametrize("value", WRONG, ids=str)
@pytest.mark.parametrize("field", ["single", "special_tokens", "type"])
def test_a_template_field_of_another_type(field: str, value: Any) -> None:
    check_pipeline("post_processor", TEMPLATE | {field: value})


@pytest.mark.parametrize("value", WRONG, ids=str)
def test_a_special_token_of_another_type(value: Any) -> None:
    for token in (value, {"id": value}, {"id": "<s>", "ids": value}):
        piece = {"SpecialToken": token}
        check_pipeline(
            "post_processor", TEMPLATE | {"single": [piece], "special_tokens": {"<s>": token}}
        )


@pytest.mark.parametrize("value", WRONG, ids=str)
@pytest.mark.parametrize("kind", ["Replace", "Prepend", "Sequence"])
def test_a_step_whose_fields_are_of_another_type(kind: str, value: Any) -> None:
    fields = dict.fromkeys(("pattern", "content", "prepend", "normalizers"), value)
    check_pipeline("normalizer", {"type": kind} | fields)


def test_a_template_that_repeats_the_text() -> None:
    with pytest.raises(BadBundle, match="more than 256 times"):
        check_pipeline("post_processor", TEMPLATE | {"single": [{"Sequence": {"id": "A"}}] * 300})


def test_a_template_with_many_tokens() -> None:
    tokens = {"<s>": {"id": "<s>", "ids": [1] * 1001}}
    with pytest.raises(BadBundle, match="puts 1001 tokens around a text"):
        check_pipeline("post_processor", TEMPLATE | {"special_tokens": tokens})


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


@pytest.mark.parametrize(
    ("added", "model"),
    [
        ([{"id": 2, "content": "x" * 5000}], {}),
        ([], {"type": "Unigram", "vocab": [["<unk>", 0], ["x" * 5000, -1.0]]}),
    ],
    ids=["added token", "Unigram piece"],
)
def test_a_token_of_thousands_of_characters(added: Any, model: Any) -> None:
    with pytest.raises(BadBundle, match=r"'xxx.*has 5000 characters, expected at most 4096"):
        check_pieces(raw(added), raw(model))


def test_added_tokens_that_are_a_book_together() -> None:
    with pytest.raises(BadBundle, match=r"have 1200000 characters, expected at most 1048576"):
        check_pieces(raw([{"content": "x" * 4000}] * 300), raw({}))


@pytest.mark.parametrize(
    ("added", "model"),
    [([{"id": 4_000_000_000, "content": "z"}], {}), ([], {"vocab": {"a": 1, "z": 4_000_000_000}})],
    ids=["added token", "vocabulary"],
)
def test_a_token_with_a_very_large_id(added: Any, model: Any) -> None:
    with pytest.raises(BadBundle, match="token 'z' has the id 4000000000, expected at most 167772"):
        check_ids(raw(added), raw(model))


@pytest.mark.parametrize("value", WRONG, ids=str)
def test_tokens_of_another_type(value: Any) -> None:
    check_pieces(raw(value), raw({"vocab": value}))
    check_pieces(raw([value]), raw({"vocab": [value]}))
    check_ids(raw([value]), raw({"vocab": [value]}))


def test_long_tokens_of_a_hash_table() -> None:
    check_pieces(raw([]), raw({"type": "BPE", "vocab": {"x" * 5_000_000: 0}}))


def test_a_file_of_brackets() -> None:
    with pytest.raises(BadBundle, match="it has about 8,000,001 values, expected at most 8,000,0"):
        check_values(b"[" * (MAX_VALUES + 1))
    check_values(b"[" * MAX_VALUES)
