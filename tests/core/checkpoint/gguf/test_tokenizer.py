"""A GGUF file's tokenizer gives llama.cpp's ids, or is refused for what is wrong with it."""

import json
import random
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from edgelm.checkpoint.gguf.metadata import GgufMetadata
from edgelm.checkpoint.gguf.parts import open_parts
from edgelm.checkpoint.gguf.pre_tokenizers import PRE_TOKENIZERS
from edgelm.checkpoint.gguf.tokenizer import gguf_tokenizer, write_for_transformers
from edgelm.errors import BadCheckpoint
from tests.checkpoints.tiny_chat import tiny_tokenizer
from tests.core.checkpoint.gguf import llama_cpp_spm

SPECIAL = ["<pad>", "<s>", "</s>", "<|end|>"]
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def byte_level() -> dict[str, Any]:
    """Metadata of a byte-level BPE vocabulary, as its keys and values."""
    vocabulary = sorted(tiny_tokenizer().get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(tiny_tokenizer().to_str())["model"]["merges"]
    return {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [token for token, _ in vocabulary],
        "token_type": [CONTROL if token in SPECIAL else NORMAL for token, _ in vocabulary],
        "merges": [" ".join(pair) for pair in merges],
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


WORDS = ["▁", "▁the", "the", "▁t", "th", "he", "▁th", "e", "t", "h", "in", "ing"]
WORDS += [
    "▁in",
    "i",
    "n",
    "g",
    "1",
    "2",
    "12",
    "▁12",
    "\n",
    "é",
    "日",
    "日本",
    "本",
    "▁▁",
    "▁▁▁▁",
    "▁▁the",
]


def sentencepiece(**over: Any) -> dict[str, Any]:
    """Metadata of a SentencePiece vocabulary with bytes; words have falling scores."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    tokens += ["<|user|>", "\n\n\n"]
    return {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "scores": [0.0] * 259 + [-float(rank) for rank in range(len(WORDS))] + [-1e3, -1e3],
        "token_type": [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(WORDS) + [3, 4],
        "bos_token_id": 1,
        "eos_token_id": 2,
        **over,
    }


def write(path: Path, values: dict[str, Any]) -> GgufMetadata:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in values.items():
        name = key if "." in key else f"tokenizer.ggml.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif value is not None:
            writer.add_array(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return open_parts(path)[0].metadata


def build(folder: Path, values: dict[str, Any]) -> Tokenizer:
    return gguf_tokenizer(write(folder / "v.gguf", values))[0]


def published(splits: list[Any]) -> Tokenizer:
    """The same vocabulary in the pipeline that a model's own tokenizer.json has."""
    tokenizer = Tokenizer.from_str(tiny_tokenizer().to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    return tokenizer


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
TEXTS = [
    "Steps:\n\n1. Mix.\n\n2. Bake.",
    "def f():\n    1\n",
    "a  1  b",
    "ied 4 ½ months",
    "x\n\t22 ²",
    "The miller's wheel, <|end|>why?</s>  ",
    "",
    "\n",
    "日本語 12345 🦙",
]


@pytest.mark.parametrize(
    ("pre", "splits"),
    [
        ("gpt-2", [GPT2]),
        ("smollm", [pre_tokenizers.Digits(individual_digits=True), GPT2]),
        ("starcoder", [pre_tokenizers.Digits(individual_digits=True), GPT2]),
    ],
)
def test_ids_of_the_published_pipeline(tmp_path: Path, pre: str, splits: list[Any]) -> None:
    ours, theirs = build(tmp_path, byte_level() | {"pre": pre}), published(splits)
    for text in TEXTS:
        found = ours.encode(text, add_special_tokens=False)
        assert found.ids == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(found.ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("llama-bpe", "it's 12345 a\n\n b", ["it", "'s", " ", "123", "45", " a", "\n\n", " b"]),
        ("qwen2", "it'S 123 a\n\n b", ["it", "'S", " ", "1", "2", "3", " a", "\n\n", " b"]),
        ("qwen35", "नमस्ते 12!\n", ["नमस्ते", " ", "1", "2", "!\n"]),
        ("tekken", "camelCase IT", ["camel", "Case", " IT"]),
        ("gpt-4o", "Don't 1234 a/b", ["Don't", " ", "123", "4", " a", "/b"]),
        ("default", "a, 1234", ["a", ",", " ", "123", "4"]),
        ("deepseek-coder", "a 12\n", ["a", " ", "1", "2", "\n"]),
        ("deepseek-llm", "Größe 12,\n", ["Gr", "öß", "e", " ", "12", ",", "\n"]),
        ("bloom", "a, b。c", ["a", ",", " b", "。", "c"]),
        ("deepseek-llm", "日本ab，1", ["日本", "ab", "，", "1"]),
        ("deepseek-v3", "a 1234 日本", ["a", " ", "123", "4", " ", "日本"]),
        ("falcon", "a: 1234b", ["a", ":", " ", "123", "4", "b"]),
    ],
)
def test_how_text_is_split(tmp_path: Path, pre: str, text: str, pieces: list[str]) -> None:
    tokenizer = build(tmp_path, byte_level() | {"pre": pre})
    assert tokenizer.pre_tokenizer is not None
    spans = tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [text[begin:end] for _, (begin, end) in spans] == pieces


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_way_to_split_keeps_the_text(tmp_path: Path, pre: str) -> None:
    tokenizer = build(tmp_path, byte_level() | {"pre": pre})
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("space_prefix", [True, False], ids=["llama", "gemma"])
def test_sentencepiece_gives_llama_cpps_ids(tmp_path: Path, space_prefix: bool) -> None:
    values = sentencepiece(add_space_prefix=space_prefix)
    tokenizer = build(tmp_path, values)
    parts = [
        "the",
        " ",
        "  ",
        "     ",
        "in",
        "ing",
        "12",
        "1",
        "é",
        "日本",
        "\n",
        "\n\n\n",
        "x",
        "🦙",
    ]
    parts += ["</s>", "<|user|>", "<s>", "the thing"]
    generator = random.Random(0)
    texts = [
        "",
        " ",
        " the",
        "</s>the",
        *("".join(generator.choices(parts, k=6)) for _ in "x" * 400),
    ]
    cut_out = ["<unk>", "<s>", "</s>", "<|user|>", "\n\n\n"]
    for text in texts:
        expected = llama_cpp_spm.encode(
            text, values["tokens"], values["scores"], cut_out, space_prefix=space_prefix
        )
        assert tokenizer.encode(text, add_special_tokens=False).ids == expected


GEMMA_4_MERGES = ["▁ t", "h e", "▁t he", "i n", "in g", "▁ in", "1 2", "▁ 12", "日 本", "▁ ▁"]
GEMMA_4_MERGES += ["▁▁ ▁▁", "\n \n", "▁▁ the", "t h"]


def gemma_4() -> dict[str, Any]:
    """Metadata of Gemma 4's kind of vocabulary: SentencePiece's words, and merges."""
    values = sentencepiece(model="gemma4", merges=GEMMA_4_MERGES, add_bos_token=False)
    values["tokens"] = ["\n\n" if token == "\n\n\n" else token for token in values["tokens"]]
    values["token_type"][-1] = NORMAL
    return values | {"unknown_token_id": 0, "add_space_prefix": False}


def test_gemma_4_gives_the_ids_of_its_published_pipeline(tmp_path: Path) -> None:
    values = gemma_4()
    ours = build(tmp_path, values)
    vocabulary = {token: index for index, token in enumerate(values["tokens"])}
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in GEMMA_4_MERGES)]
    model = models.BPE(vocabulary, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    theirs = Tokenizer(model)
    theirs.normalizer = normalizers.Replace(" ", "▁")
    theirs.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    parts = [
        "the",
        " ",
        "  ",
        "     ",
        "in",
        "ing",
        "12",
        "é",
        "日本",
        "\n",
        "\n\n",
        "x",
        "🦙",
        "th",
    ]
    generator = random.Random(0)
    for _ in range(400):
        text = "".join(generator.choices(parts, k=6))
        found = ours.encode(text, add_special_tokens=False).ids
        assert found == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(found, skip_special_tokens=False) == text
    assert ours.encode("the").ids[0] == 1  # whatever the file says, as in llama.cpp


def test_gemma_4_needs_its_merges(tmp_path: Path) -> None:
    values = gemma_4()
    del values["merges"]
    with pytest.raises(BadCheckpoint, match=r"without tokenizer\.ggml\.merges"):
        build(tmp_path, values)


def test_a_space_goes_before_each_text_after_a_special_token(tmp_path: Path) -> None:
    tokenizer = build(tmp_path, sentencepiece())
    for text, pieces in [
        (" in", ["▁", "▁in"]),
        ("  in", ["▁▁", "▁in"]),
        ("</s>the", ["</s>", "▁the"]),
        ("the thing", ["▁the", "▁th", "ing"]),
    ]:
        assert tokenizer.encode(text, add_special_tokens=False).tokens == pieces
    assert tokenizer.decode(tokenizer.encode(" the thing").ids) == " the thing"


@pytest.mark.parametrize(
    ("values", "bos", "eos"),
    [
        (sentencepiece(), True, False),
        (sentencepiece(add_bos_token=False), False, False),
        (sentencepiece(add_eos_token=True), True, True),
        (sentencepiece(bos_token_id=None), True, False),  # 1 by default
        (byte_level(), False, False),
        (byte_level() | {"add_bos_token": True}, True, False),
        (byte_level() | {"pre": "llama-bpe"}, True, False),
        (byte_level() | {"pre": "llama-bpe", "add_bos_token": False}, False, False),
    ],
)
def test_what_is_put_around_a_text(
    tmp_path: Path, values: dict[str, Any], bos: bool, eos: bool
) -> None:
    ids = build(tmp_path, values).encode("in").ids
    assert (ids[0] == 1, ids[-1] == 2) == (bos, eos)


@pytest.mark.parametrize(
    ("over", "ends"),
    [
        ({}, [2, 3]),  # `<|end|>` by its name
        ({"eot_token_id": 5}, [2, 5, 3]),
        ({"eom_token_id": 6, "eos_token_id": 3}, [3, 6, 2]),
        ({"eos_token_id": 2**32 - 1}, [2, 3]),
    ],
    ids=["by-name", "eot", "eom", "no-eos"],
)
def test_ends_of_an_answer(tmp_path: Path, over: dict[str, Any], ends: list[int]) -> None:
    _, vocabulary = gguf_tokenizer(write(tmp_path / "v.gguf", byte_level() | over))
    assert vocabulary.eos_token_ids == ends


def renamed(values: dict[str, Any], **names: str) -> dict[str, Any]:
    tokens = list(values["tokens"])
    for index, name in names.items():
        tokens[int(index.removeprefix("at_"))] = name
    return values | {"tokens": tokens}


def test_end_of_turn_counts_though_its_type_says_normal(tmp_path: Path) -> None:
    values = renamed(sentencepiece(), at_284="<end_of_turn>")
    assert values["token_type"][284] == NORMAL
    tokenizer, vocabulary = gguf_tokenizer(write(tmp_path / "v.gguf", values))
    assert vocabulary.eos_token_ids == [2, 284]
    assert tokenizer.encode("in<end_of_turn>", add_special_tokens=False).ids[-1] == 284


def test_end_of_a_channel_is_not_the_end_of_an_answer(tmp_path: Path) -> None:
    values = renamed(byte_level(), at_1="<|return|>", at_2="<|call|>")
    _, vocabulary = gguf_tokenizer(write(tmp_path / "v.gguf", values))
    assert {vocabulary.tokens[index] for index in vocabulary.eos_token_ids} == {
        "<|return|>",
        "<|call|>",
    }


@pytest.mark.parametrize("values", [byte_level(), sentencepiece()], ids=["bytes", "pieces"])
def test_transformers_reads_the_same_tokenizer(tmp_path: Path, values: dict[str, Any]) -> None:
    values = values | {"tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}"}
    metadata = write(tmp_path / "v.gguf", values)
    folder = tmp_path / "hf"
    folder.mkdir()
    write_for_transformers(metadata, folder)
    theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    ours, vocabulary = gguf_tokenizer(metadata)
    assert theirs.special_tokens_map == vocabulary.special_texts()
    for text in ["the thing", " 12\n\n", "</s>in"]:
        assert theirs(text).input_ids == ours.encode(text).ids
    talk = [{"role": "user", "content": "in"}]
    assert theirs.apply_chat_template(talk, tokenize=False) == "<s>in"


REFUSED = {
    "none": (byte_level() | {"model": None}, "has no tokenizer"),
    "kind": (byte_level() | {"model": "t5"}, "a tokenizer of kind 't5' is not supported"),
    "pre": (byte_level() | {"pre": "my-own"}, "unknown pre-tokenizer 'my-own'"),
    "no-pre": (byte_level() | {"pre": None}, "does not name its pre-tokenizer"),
    "no-tokens": (byte_level() | {"tokens": None}, "has a tokenizer without tokens"),
    "tokens": (byte_level() | {"tokens": "abc"}, r"ggml\.tokens is 'abc', expected an array of"),
    "no-merges": (byte_level() | {"merges": None}, r"BPE tokenizer without tokenizer\.ggml\.merge"),
    "merges": (
        byte_level() | {"merges": ["q q"]},
        "the merge 'q q' does not join two tokens to a thi",
    ),
    "merge": (
        byte_level() | {"merges": ["qq"]},
        "the merge 'qq' does not join two tokens to a third one",
    ),
    "no-scores": (sentencepiece(scores=None), r"without tokenizer\.ggml\.scores"),
    "scores": (sentencepiece(scores=[0.0]), "scores has 1 entries, expected one for each of"),
    "types": (byte_level() | {"token_type": [1, 1]}, "token_type has 2 entries, expected one for"),
    "type": (byte_level() | {"token_type": "x"}, r"token_type is 'x', expected an array of whole"),
    "twice": (renamed(byte_level(), at_9="!"), r"the token '!' is in tokenizer\.ggml\.tokens more"),
    "eos": (byte_level() | {"eos_token_id": 320}, r"eos_token_id is 320, the vocabulary has 320"),
    "eos-text": (byte_level() | {"eos_token_id": "</s>"}, r"eos_token_id is '</s>', expected a wh"),
    "no-bos": (
        byte_level() | {"add_bos_token": True, "bos_token_id": None},
        r"add_bos_token is true, but tokenizer\.ggml\.bos_token_id is missing",
    ),
    "add-bos": (byte_level() | {"add_bos_token": "yes"}, "add_bos_token is 'yes', expected true"),
    "long": (renamed(byte_level(), at_9="x" * 5000), "a token of 5000 characters"),
}


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED)
def test_a_tokenizer_that_would_be_a_guess_is_refused(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadCheckpoint, match=message) as caught:
        build(tmp_path, values)
    assert "v.gguf" in str(caught.value)


def test_decoders_are_of_their_kind(tmp_path: Path) -> None:
    assert isinstance(build(tmp_path, byte_level()).decoder, decoders.ByteLevel)
    assert isinstance(build(tmp_path, sentencepiece()).model, models.BPE)
