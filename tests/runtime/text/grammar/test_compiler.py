"""Grammars compiled for a vocabulary: what is refused, and with which words."""

import importlib
import logging
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models

from edgelm.errors import BadInput, MissingPackage
from edgelm.runtime.text.grammar import compiler as module
from edgelm.runtime.text.grammar.compiler import GrammarCompiler
from edgelm.runtime.text.grammar.response_format import ResponseFormat, read_response_format
from tests.checkpoints.tiny_chat import VOCAB, tiny_tokenizer

END = 3


def compiler(tokenizer: Tokenizer | None = None, **over: Any) -> GrammarCompiler:
    tokenizer = tokenizer or tiny_tokenizer()
    return GrammarCompiler(
        tokenizer.to_str, **{"vocab_size": VOCAB, "eos_token_ids": {END}, **over}
    )


def schema(value: Any, *, strict: bool = True) -> ResponseFormat:
    given = {"type": "json_schema", "json_schema": {"schema": value, "strict": strict}}
    result = read_response_format(given)
    assert result is not None
    return result


@pytest.mark.parametrize(
    ("response_format", "message"),
    [
        (schema({"type": "objekt"}), "JSON schema .* Invalid type: objekt; change the schema"),
        (schema({"not": {"type": "string"}}), 'Unimplemented keys: \\["not"\\]; change the schema'),
        (schema({"$ref": "https://example.com/x"}), "Default retriever does not fetch"),
        (schema({"allOf": [{"type": "string"}, {"type": "null"}]}), "Unsatisfiable schema"),
        (schema({"type": "string", "pattern": "(?=a)b"}), "look-ahead"),
        (ResponseFormat("regex", "a("), "regular expression .* unclosed group .* look-around"),
        (ResponseFormat("regex", r"(a)\1"), "backreferences are not supported"),
        (ResponseFormat("grammar", "start: x"), 'grammar .* unknown name: "x"'),
        (ResponseFormat("grammar", "start: <|nope|>"), "unknown special token"),
    ],
)
def test_what_is_refused(response_format: ResponseFormat, message: str) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        compiler().check(response_format)
    assert len(str(refused.value)) < 800
    assert "\n" not in str(refused.value)


def test_without_strict_what_cannot_be_enforced_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        compiler().check(schema({"type": "object", "if": {}}, strict=False))
    assert caplog.messages == [
        'the JSON schema of response_format is not enforced in full: Unimplemented keys: ["if"]'
    ]


def test_a_tokenizer_without_bytes_is_refused() -> None:
    words = Tokenizer(models.WordPiece({"a": 0, "##b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.decoder = decoders.WordPiece()
    with pytest.raises(BadInput, match=r"tokenizer cannot be used .* decoder type: .*WordPiece"):
        compiler(words).check(ResponseFormat("regex", "a"))


def test_an_eos_token_beyond_the_vocabulary_is_ignored() -> None:
    compiler(eos_token_ids={END, 10**6, 10**400}).check(ResponseFormat("regex", "a"))
    compiler(eos_token_ids={10**6}).check(ResponseFormat("regex", "a"))


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingPackage, match=r"edgelm\[structured\]"):
        compiler().check(ResponseFormat("regex", "a"))


def test_the_vocabulary_is_read_once_and_few_grammars_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_CACHED", 2)
    reads = []

    def read() -> str:
        reads.append(1)
        return tiny_tokenizer().to_str()

    grammars = GrammarCompiler(read, VOCAB, {END})
    for _ in range(2):
        for number in range(3):
            grammars.check(ResponseFormat("regex", f"a{number}"))
    assert len(reads) == 1
    assert len(grammars._matchers) == 2


def test_large_schemas_compile() -> None:
    fields: dict[str, Any] = {f"field_{n}": {"type": "string"} for n in range(300)}
    fields["kind"] = {"enum": [f"kind {n}" for n in range(5000)]}
    closed = {"required": [*fields], "additionalProperties": False}
    compiler().start(schema({"type": "object", "properties": fields, **closed}))
