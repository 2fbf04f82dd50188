"""Predicted text as tokens, for vocabularies of bytes and of words."""

import json
from pathlib import Path

import pytest

from edgelm.bench.speculation.extraction import EXTRACTION
from edgelm.bench.speculation.task import Task
from edgelm.runtime.speculation.value_lookup import ValueLookup
from edgelm.runtime.text.tokenizer import Tokenizer
from tests.checkpoints.tiny_chat import tiny_tokenizer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tiny_tokenizer().save(str(path))
    return Tokenizer(path)


@pytest.fixture(scope="module")
def smollm2(smollm2_tokenizer: Path) -> Tokenizer:
    return Tokenizer(smollm2_tokenizer / "tokenizer.json")


@pytest.fixture(scope="module")
def spaced(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """As SentencePiece has it: a space begins a word, other characters are bytes."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]
    merges = []
    for word in ("Luleå", "Oslo", "Sandberg", "name", "town"):
        for start in ("▁", ""):
            whole = (start + word)[:1]
            for letter in (start + word)[1:]:
                if letter.isascii() and whole + letter not in pieces:
                    merges.append([whole, letter])
                    pieces.append(whole + letter)
                whole += letter
    merges = [pair for pair in merges if pair[0] in pieces]
    model = {
        "type": "BPE",
        "vocab": {piece: number for number, piece in enumerate(pieces)},
        "merges": merges,
        "unk_token": "<unk>",
        "fuse_unk": True,
        "byte_fallback": True,
    }
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    parts = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                back,
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": model,
    }
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(json.dumps(parts))
    return Tokenizer(path)


PEOPLE = Task(
    "Give name and town as JSON. Ann Oslo lives in Oslo. Bo Sandberg lives in Luleå. Жан lives in "
    "Oslo.",
    '[{"name": "Ann Oslo", "town": "Oslo"}, {"name": "Bo Sandberg", "town": "Luleå"}, '
    '{"name": "Жан", "town": "Oslo"}]',
)


def predicted(tokenizer: Tokenizer, task: Task) -> tuple[int, int, int]:
    """Tokens of the answer, those predicted, and those predicted rightly."""
    history = tokenizer.encode(task.prompt + "\n").tolist()
    whole = tokenizer.encode(task.prompt + "\n" + task.reference).tolist()
    assert whole[: len(history)] == history
    answer = whole[len(history) :]
    lookup = ValueLookup(history, tokenizer)
    count = right = 0
    for token in answer:
        expected = lookup.draft(1)
        history.append(token)
        assert lookup.update() is (expected == [token] if expected else None)
        count += bool(expected)
        right += expected == [token]
    return len(answer), count, right


@pytest.mark.parametrize("name", ["tiny", "smollm2", "spaced"])
def test_records_are_predicted_in_any_vocabulary(name: str, request: pytest.FixtureRequest) -> None:
    total, count, right = predicted(request.getfixturevalue(name), PEOPLE)
    assert right > 0.55 * total
    assert right > 0.75 * count


def test_extractions_are_predicted_as_the_vocabulary_splits_them(smollm2: Tokenizer) -> None:
    found = [predicted(smollm2, task) for task in EXTRACTION]
    total, count, right = (sum(column) for column in zip(*found, strict=True))
    assert right > 0.7 * total
    assert right > 0.8 * count


def test_within_a_character_the_prediction_is_followed(tiny: Tokenizer) -> None:
    """Жан is six tokens of a byte each, and none of them ends a text."""
    prompt = tiny.encode("Ann: Oslo. Жан: Rome.").tolist()
    begun = tiny.encode('[{"name": "Ann", "town": "Oslo"}, {"name": "').tolist()
    name = tiny.encode("Жан").tolist()
    history = list(prompt)
    lookup = ValueLookup(history, tiny)
    for token in begun:
        history.append(token)
        lookup.update()
    for number, token in enumerate(name):
        history.append(token)
        right = lookup.update()
        assert right or not number or name[number - 1 : number] == name[:1], number
    assert lookup.ready(4) >= 4
    assert tiny.decode(lookup.draft(4)) == '", "'


def test_a_text_without_json_is_never_read(tiny: Tokenizer) -> None:
    history = tiny.encode("Why?").tolist()
    lookup = ValueLookup(history, tiny)
    for token in tiny.encode("Because small molecules scatter short waves.").tolist():
        history.append(token)
        assert lookup.update() is None
        assert lookup.ready(8) == 0
    assert lookup.matched == 0


def test_what_a_grammar_forces_is_predicted(smollm2: Tokenizer) -> None:
    history = smollm2.encode("Who is it?").tolist()
    lookup = ValueLookup(history, smollm2, lambda: 'customer"')
    for token in smollm2.encode('{"').tolist():
        history.append(token)
        lookup.update()
    assert smollm2.decode(lookup.draft(8)).startswith('customer":')
