"""Parts of a tokenizer.json whose types are wrong are left to the library's own errors."""

from typing import Any

import pytest

from edgelm.errors import BadBundle
from edgelm.runtime.text.tokenizer_limits import check_pipeline

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
