"""Streaming text: never half a character, and nothing lost."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import models

from edgelm.errors import BadBundle
from edgelm.runtime.text.tokenizer import Detokenizer, Tokenizer
from tests.checkpoints.tiny_chat import tiny_tokenizer
from tests.sentencepiece import add_sentencepiece_steps

TEXTS = {
    "ascii": "Why is the sky blue?",
    "accents": "Le garçon naïf a goûté à l'œuf brûlé près de Škofja Loka.",
    "emoji": "A flag 🏴‍☠️, a family 👨‍👩‍👧‍👦, a thumb 👍🏽 and a smile 🙂.",
    "scripts": "漢字とカタカナ, Привет, مرحبا, שלום, हिन्दी, ไทย",
    "white space": "  two spaces\n\n\tand a tab ",
    "combined": "e\u0301 is not é",
}
REPLACEMENT = "\ufffd"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tiny_tokenizer().save(str(path))
    return Tokenizer(path)


@pytest.fixture(scope="module")
def smollm2(smollm2_tokenizer: Path) -> Tokenizer:
    return Tokenizer(smollm2_tokenizer / "tokenizer.json")


def stream(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in tokens]
    return [*pieces, detokenizer.flush()]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("name", ["tiny", "smollm2"])
def test_stream_is_the_text(name: str, text: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    pieces = stream(tokenizer, tokenizer.encode(text).tolist())
    assert "".join(pieces) == text
    assert not any(REPLACEMENT in piece for piece in pieces)
    # Complete characters come at once; at most the end of an incomplete one is waited for.
    assert pieces[-1] == ""


def test_a_character_of_four_byte_tokens_comes_whole(tiny: Tokenizer) -> None:
    tokens = tiny.encode("🙂").tolist()
    assert len(tokens) == 4
    assert stream(tiny, tokens) == ["", "", "", "🙂", ""]


def test_what_was_cut_off_is_flushed(tiny: Tokenizer) -> None:
    tokens = tiny.encode("a🙂").tolist()[:-1]
    assert stream(tiny, tokens) == ["a", "", "", "", REPLACEMENT]
    detokenizer = Detokenizer(tiny)
    detokenizer.push(tokens[1])
    assert detokenizer.flush() == REPLACEMENT
    assert detokenizer.flush() == ""


def test_bytes_that_never_become_a_character(tiny: Tokenizer) -> None:
    broken = tiny.encode("🙂").tolist()[:2]
    tokens = [*broken, *tiny.encode("abc é").tolist()]
    pieces = stream(tiny, tokens)
    assert "".join(pieces) == tiny.decode(tokens) == f"{REPLACEMENT}abc é"


def test_special_tokens_are_silent(tiny: Tokenizer) -> None:
    end = 3
    tokens = [*tiny.encode("one").tolist(), end, *tiny.encode(" two").tolist(), end]
    assert "".join(stream(tiny, tokens)) == "one two"
    assert tiny.token(end) == "<|end|>"
    assert tiny.token(10_000) is None


@pytest.fixture(scope="module")
def metaspace(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """As Llama 2, Mistral and Phi-3 have it: the decoder drops a space at the beginning."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁sky", "▁blue", "s", "k", "y", "b", "l", "u", "e"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    merges = [("s", "k"), ("sk", "y"), ("▁", "sky"), ("b", "l"), ("u", "e"), ("bl", "ue")]
    merges += [("▁", "blue")]
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    inner = HfTokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    add_sentencepiece_steps(inner)
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    path = tmp_path_factory.mktemp("metaspace") / "tokenizer.json"
    inner.save(str(path))
    return Tokenizer(path)


@pytest.mark.parametrize("text", ["sky blue sky", "sky 🙂 blue", "é blue"])
def test_a_decoder_that_strips_keeps_inner_spaces(metaspace: Tokenizer, text: str) -> None:
    tokens = metaspace.encode(text).tolist()
    assert "".join(stream(metaspace, tokens)) == metaspace.decode(tokens) == text


def test_a_space_after_a_special_token_stays(metaspace: Tokenizer) -> None:
    sky, end = metaspace.encode("sky").tolist(), 2
    tokens = [*sky, end, *metaspace.encode("blue").tolist()]
    assert metaspace.decode(tokens) == "sky blue"
    assert "".join(stream(metaspace, tokens)) == "sky blue"


def test_encode_adds_special_tokens_only_if_asked(tmp_path: Path) -> None:
    inner = tiny_tokenizer()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    plain = tokenizer.encode("sky", special=False).tolist()
    assert tokenizer.encode("sky").tolist() == [1, *plain]
    assert tokenizer.encode("sky").dtype == "int64"


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(BadBundle, match=r"tokenizer\.json is not a tokenizer: .*export the model"):
        Tokenizer(path)


def test_a_long_value_is_not_repeated_in_the_message(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**_tree(), "added_tokens": "x" * 1_000_000}))
    with pytest.raises(BadBundle, match=r"is not a tokenizer: .*xxx.*export the model") as caught:
        Tokenizer(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("kind", ["BPE", "WordPiece", "WordLevel"])
def test_two_tokens_of_one_id(tmp_path: Path, kind: str) -> None:
    """The library decodes such an id to either token, which differs from one load to the next."""
    tree = _tree()
    if kind != "BPE":
        tree["model"] = {
            "type": kind,
            "vocab": tree["model"]["vocab"],
            "unk_token": "<unk>",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        }
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tree))
    Tokenizer(path)
    vocabulary = tree["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[second] = vocabulary[first]
    path.write_text(json.dumps(tree))
    with pytest.raises(BadBundle, match=rf"the same id {vocabulary[first]}, expected an id of"):
        Tokenizer(path)


def test_a_vocabulary_whose_ids_are_places(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    pieces = [("<unk>", 0.0), ("a", -1.0), ("b", -2.0)]
    HfTokenizer(models.Unigram(pieces, unk_id=0)).save(str(path))
    assert Tokenizer(path).encode("ab").tolist() == [1, 2]


def _tree() -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(tiny_tokenizer().to_str())
    return tree


def test_a_text_is_encoded_as_behind_another(smollm2: Tokenizer) -> None:
    context, text = '{"city": "', 'Lyon", "goods'
    whole = smollm2.encode(context + text).tolist()
    found = smollm2.encode_behind(context, text)
    assert found == whole[-len(found) :]
    assert smollm2.decode(found) == text
    assert smollm2.encode_behind('{"city": "Lyon"', ', "') == []  # '",' is one token
