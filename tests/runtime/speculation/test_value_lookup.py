"""Predicted text as tokens, for vocabularies of bytes and of words."""

import json
from pathlib import Path

import numpy as np
import pytest

from edgelm.bench.speculation.extraction import EXTRACTION
from edgelm.bench.speculation.task import Task
from edgelm.runtime.speculation.speculator import SpeculationState, Speculator
from edgelm.runtime.speculation.value_lookup import ValueLookup
from edgelm.runtime.text.tokenizer import Tokenizer
from edgelm.speculation import SIZES
from tests.checkpoints.tiny_chat import tiny_tokenizer
from tests.runtime.speculation.more_extractions import MORE_EXTRACTIONS


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
    parts: dict[str, object] = {
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


VOCAB = 10**6

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
    lookup = ValueLookup(history, tokenizer, VOCAB)
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


@pytest.mark.parametrize("tasks", [EXTRACTION, MORE_EXTRACTIONS], ids=["bench", "more"])
def test_extractions_are_predicted_as_the_vocabulary_splits_them(
    smollm2: Tokenizer, tasks: tuple[Task, ...]
) -> None:
    found = [predicted(smollm2, task) for task in tasks]
    total, count, right = (sum(column) for column in zip(*found, strict=True))
    assert right > 0.65 * total
    assert right > 0.75 * count


def _cost(size: int) -> float:
    return float(np.interp(size, [1, 2, 4, 8, 16], [1, 1.15, 1.48, 2.3, 3.92]))


def gain(tokenizer: Tokenizer, task: Task, *, values: bool) -> float:
    """Speed over that without speculation, at the costs of runs that a CPU was measured to have."""
    history = tokenizer.encode(task.prompt + "\n").tolist()
    answer = tokenizer.encode(task.reference).tolist()
    state, text = SpeculationState(), [*history, *answer]
    costs = {size: _cost(size) for size in SIZES}
    for _ in range(3):
        state.costs.single(1.0)
        for size, cost in costs.items():
            state.costs.several(size, cost)
    predictor = ValueLookup(history, tokenizer, VOCAB) if values else None
    speculator = Speculator("lookup", state, history, predictor)
    elapsed = 0.0
    while len(history) < len(text):
        drafts = speculator.propose(min(15, len(text) - len(history) - 1), None)
        expected = text[len(history) : len(history) + len(drafts)]
        wrong = (number for number, token in enumerate(drafts) if token != expected[number])
        taken = next(wrong, len(drafts)) + 1
        elapsed += costs.get(1 + len(drafts), 1.0)
        for token in text[len(history) : len(history) + taken]:
            history.append(token)
            speculator.update()
    return len(answer) / elapsed


@pytest.mark.parametrize("tasks", [EXTRACTION, MORE_EXTRACTIONS], ids=["bench", "more"])
def test_extraction_gains_what_the_index_of_tokens_does_not(
    smollm2: Tokenizer, tasks: tuple[Task, ...]
) -> None:
    with_values = [gain(smollm2, task, values=True) for task in tasks]
    without = [gain(smollm2, task, values=False) for task in tasks]
    assert np.exp(np.mean(np.log(with_values))) >= 1.8
    assert min(with_values) > 1.4
    assert np.exp(np.mean(np.log(without))) < 1.4


def test_within_a_character_the_prediction_is_followed(tiny: Tokenizer) -> None:
    """Жан is six tokens of a byte each, and none of them ends a text."""
    prompt = tiny.encode("Ann: Oslo. Жан: Rome.").tolist()
    begun = tiny.encode('[{"name": "Ann", "town": "Oslo"}, {"name": "').tolist()
    name = tiny.encode("Жан").tolist()
    history = list(prompt)
    lookup = ValueLookup(history, tiny, VOCAB)
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
    lookup = ValueLookup(history, tiny, VOCAB)
    for token in tiny.encode("Because small molecules scatter short waves.").tolist():
        history.append(token)
        assert lookup.update() is None
        assert lookup.ready(8) == 0
    assert lookup.matched == 0


def test_tokens_without_an_embedding_are_not_predicted(tmp_path: Path) -> None:
    """A tokenizer may have more tokens than the model; in a prompt they are plain text."""
    own = tiny_tokenizer()
    own.add_special_tokens(["<image>"])
    own.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    history = tokenizer.encode_plain("name: <image>").tolist()
    lookup = ValueLookup(history, tokenizer, 320)
    for token in tokenizer.encode_plain('{"name":').tolist():
        history.append(token)
        lookup.update()
    assert tokenizer.decode(lookup.draft(16)) == ' "'


def test_what_a_grammar_forces_is_predicted(smollm2: Tokenizer) -> None:
    history = smollm2.encode("Who is it?").tolist()
    lookup = ValueLookup(history, smollm2, VOCAB, lambda: 'customer"')
    for token in smollm2.encode('{"').tolist():
        history.append(token)
        lookup.update()
    assert smollm2.decode(lookup.draft(8)).startswith('customer":')


@pytest.mark.parametrize("seed", range(5))
def test_json_whose_values_are_not_in_the_prompt_is_no_loss(smollm2: Tokenizer, seed: int) -> None:
    """Words of the prompt, in any order, so that wrong places of the prompt are pointed at."""
    rng = np.random.default_rng(seed)
    words = [word.strip(",.") for task in MORE_EXTRACTIONS for word in task.prompt.split()]
    prompt = " ".join(rng.permutation(words))

    def value() -> object:
        count = int(rng.integers(1, 5))
        return int(rng.integers(500)) if rng.random() < 0.3 else " ".join(rng.choice(words, count))

    keys = [[f"{word}_{number}" for word in rng.choice(words, 4)] for number in range(8)]
    answer = json.dumps([{key: value() for key in record} for record in keys], ensure_ascii=False)
    assert gain(smollm2, Task(prompt, answer), values=True) >= 0.97
