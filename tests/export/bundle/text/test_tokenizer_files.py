"""Tokenizer, chat template and generation defaults, wherever the source keeps them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from edgelm.checkpoint.source import open_checkpoint
from edgelm.compress.model import load_tokenizer
from edgelm.errors import BadCheckpoint
from edgelm.export.bundle.text.tokenizer_files import write_tokenizer_files
from tests.checkpoints.gguf_files import write_gguf
from tests.checkpoints.models import tiny_model
from tests.checkpoints.tiny_chat import TEMPLATE, VOCAB, tiny_tokenizer


@pytest.fixture
def source(tiny_chat: Path, tmp_path: Path) -> Path:
    """A copy of a source without a template."""
    folder = shutil.copytree(tiny_chat, tmp_path / "source")
    (folder / "chat_template.jinja").unlink()
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    return folder


def write(source: Path, output: Path) -> set[str]:
    write_tokenizer_files(open_checkpoint(source), output)
    return {path.name for path in output.iterdir()}


def configure(source: Path, name: str, values: Any) -> None:
    (source / name).write_text(json.dumps(values))


def test_tokenizer_is_copied_and_no_template_is_made_up(source: Path, output: Path) -> None:
    assert write(source, output) == {"tokenizer.json", "generation_config.json"}
    assert (output / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_template_in_a_file_of_its_own_wins(source: Path, output: Path) -> None:
    (source / "chat_template.jinja").write_text(TEMPLATE)
    configure(source, "tokenizer_config.json", {"chat_template": "another"})
    write(source, output)
    assert (output / "chat_template.jinja").read_text() == TEMPLATE


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (TEMPLATE, TEMPLATE),
        (
            [{"name": "tool_use", "template": "no"}, {"name": "default", "template": TEMPLATE}],
            TEMPLATE,
        ),
        (
            [{"name": "default", "template": "no"}, {"name": "default", "template": TEMPLATE}],
            TEMPLATE,
        ),
        ([{"name": "rag", "template": "no"}], None),
        ({"tool_use": "no", "default": TEMPLATE}, TEMPLATE),
        ([], None),
        (None, None),
    ],
    ids=["text", "named", "twice", "no-default", "object", "empty", "null"],
)
def test_template_in_the_tokenizer_config(
    source: Path, output: Path, template: Any, expected: str | None
) -> None:
    configure(source, "tokenizer_config.json", {"chat_template": template})
    names = write(source, output)
    assert ("chat_template.jinja" in names) is (expected is not None)
    if expected is not None:
        assert (output / "chat_template.jinja").read_text() == expected


@pytest.mark.parametrize("template", [5, ["no name"], [{"name": "default"}], {"default": 5}])
def test_templates_that_are_none(source: Path, output: Path, template: Any) -> None:
    configure(source, "tokenizer_config.json", {"chat_template": template})
    with pytest.raises(BadCheckpoint, match=r"tokenizer_config\.json: chat_template .*expected a"):
        write(source, output)


@pytest.mark.parametrize(
    ("generation", "model", "expected"),
    [
        ({"eos_token_id": 3}, 2, [3, 2]),
        ({"eos_token_id": [3, 2]}, 2, [3, 2]),
        ({"eos_token_id": [3, 4]}, [2, 4], [3, 4, 2]),
        ({}, 2, [2]),
        (None, 2, [2]),
        ({"eos_token_id": 3}, None, [3]),
        ({}, None, None),
    ],
    ids=["merged", "contained", "lists", "model's", "no-file", "generation's", "none"],
)
def test_every_end_of_sequence(
    source: Path, output: Path, generation: dict[str, Any] | None, model: Any, expected: Any
) -> None:
    if generation is None:
        (source / "generation_config.json").unlink()
    else:
        configure(source, "generation_config.json", generation)
    config = json.loads((source / "config.json").read_text())
    configure(source, "config.json", config | {"eos_token_id": model})
    write(source, output)
    written = json.loads((output / "generation_config.json").read_text())
    assert written.get("eos_token_id") == expected


def test_generation_defaults_are_kept(source: Path, output: Path) -> None:
    configure(source, "generation_config.json", {"temperature": 0.6, "top_p": None, "top_k": 20})
    write(source, output)
    written = json.loads((output / "generation_config.json").read_text())
    assert written == {
        "bos_token_id": 1,
        "eos_token_id": [2],
        "pad_token_id": 0,
        "temperature": 0.6,
        "top_k": 20,
    }


def test_no_fast_tokenizer(source: Path, output: Path) -> None:
    (source / "tokenizer.json").unlink()
    with pytest.raises(BadCheckpoint, match=r"no tokenizer\.json; write one with transformers: Au"):
        write(source, output)


@pytest.mark.parametrize(
    ("content", "packages"),
    [(b"\n\x0e\n\x05<unk>", "sentencepiece protobuf"), (b"IQ== 0\n", "tiktoken")],
    ids=["sentencepiece", "tiktoken"],
)
def test_no_fast_tokenizer_but_another(
    source: Path, output: Path, content: bytes, packages: str
) -> None:
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.model").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=f"which needs: pip install {packages}"):
        write(source, output)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"5", b"[" * 100_000, b"\xff\xfe{}", b'{"model": {"type": "Own"}}'],
    ids=["empty", "list", "object", "number", "deep", "utf-16", "unknown-model"],
)
def test_a_tokenizer_that_is_none(source: Path, output: Path, content: bytes) -> None:
    (source / "tokenizer.json").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=r"tokenizer\.json (is not|holds)"):
        write(source, output)


@pytest.mark.parametrize("fixed", [64, 10**9])
def test_truncation_and_padding_are_left_out(source: Path, output: Path, fixed: int) -> None:
    stored = json.loads((source / "tokenizer.json").read_text())
    stored["truncation"] = {
        "direction": "Right",
        "max_length": 8,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    stored["padding"] = {
        "strategy": {"Fixed": fixed},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    (source / "tokenizer.json").write_text(json.dumps(stored))
    write(source, output)
    tokenizer = Tokenizer.from_file(str(output / "tokenizer.json"))
    for text in ["hi", "the level of the sea " * 20]:
        assert tokenizer.encode(text).ids == tiny_tokenizer().encode(text).ids


def test_what_lies_beside_a_gguf_is_not_its_own(tmp_path: Path, output: Path) -> None:
    model = tiny_model("llama", vocab_size=VOCAB)
    path = write_gguf(model, tmp_path / "tiny.gguf", tokenizer=tiny_tokenizer())
    other = json.loads(tiny_tokenizer().to_str())
    size = len(other["model"]["vocab"])
    vocabulary = other["model"]["vocab"].items()
    other["model"]["vocab"] = {token: (index + 1) % size for token, index in vocabulary}
    configure(tmp_path, "tokenizer.json", other)
    code = {"AutoTokenizer": ["own.Own", "own.Own"], "AutoConfig": "own.Own"}
    configure(tmp_path, "tokenizer_config.json", {"auto_map": code, "chat_template": "no"})
    configure(tmp_path, "config.json", {"auto_map": code, "model_type": "own"})
    configure(tmp_path, "generation_config.json", {"eos_token_id": 9})
    (tmp_path / "chat_template.jinja").write_text("neither")
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    write_tokenizer_files(open_checkpoint(path), output)
    written = Tokenizer.from_file(str(output / "tokenizer.json"))
    text = "Why is the sky blue?"
    assert written.encode(text).ids == tiny_tokenizer().encode(text).ids
    assert not (output / "chat_template.jinja").exists()
    assert not (tmp_path / "ran").exists()
    generation = json.loads((output / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, 3]
    theirs = load_tokenizer(path)
    assert theirs(text).input_ids == tiny_tokenizer().encode(text).ids


def test_a_gguf_without_a_tokenizer(tmp_path: Path, output: Path) -> None:
    path = write_gguf(tiny_model("llama"), tmp_path / "tiny.gguf")
    with pytest.raises(BadCheckpoint, match=r"tiny\.gguf has no tokenizer"):
        write_tokenizer_files(open_checkpoint(path), output)


@pytest.mark.parametrize(("token", "refused"), [(VOCAB - 1, False), (VOCAB, True), (10**6, True)])
def test_a_token_that_is_added_to_every_text_has_an_embedding(
    source: Path, output: Path, token: int, refused: bool
) -> None:
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", token)])
    tokenizer.save(str(source / "tokenizer.json"))
    if not refused:
        assert "tokenizer.json" in write(source, output)
        return
    with pytest.raises(BadCheckpoint, match=f"post_processor adds token {token} to every text"):
        write(source, output)
    assert not list(output.iterdir())


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_damaged_file_is_named(source: Path, output: Path, name: str) -> None:
    (source / name).write_text('{"a": ')
    with pytest.raises(BadCheckpoint, match=f"{name} is not valid JSON"):
        write(source, output)


def test_an_end_token_beyond_any_vocabulary(source: Path, output: Path) -> None:
    configure(source, "generation_config.json", {"eos_token_id": [3, 10**400]})
    with pytest.raises(BadCheckpoint, match=r"eos_token_id is .*expected a token id or a list"):
        write(source, output)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 8_000_001, "is not a tokenizer: it has about 8,000,001 values, expected"),
        (b"[" * 100_000, r"tokenizer\.json is not a tokenizer"),
        (b"[1]", "is not a tokenizer: Expected `object`, got `array`"),
        ("{}".encode("utf-16"), r"tokenizer\.json is not a tokenizer"),
        (
            b'{"model": {"vocab": {"a": 4000000000}}}',
            r"source/tokenizer\.json is not a tokenizer: its token 'a' has the id 4000000000",
        ),
        (b'{"truncation": {}, "x": "\xff"}', r"tokenizer\.json is not "),
        (b'{"truncation": {}, "x": "\\ud800"}', r"tokenizer\.json is not "),
    ],
    ids=["brackets", "deep", "list", "utf-16", "id", "bytes", "surrogate"],
)
def test_a_tokenizer_that_cannot_be_read(
    source: Path, output: Path, content: bytes, message: str
) -> None:
    (source / "tokenizer.json").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=message):
        write(source, output)


def test_a_gguf_with_more_tokens_than_embeddings(tmp_path: Path, output: Path) -> None:
    model = tiny_model("llama", vocab_size=VOCAB - 10)
    path = write_gguf(model, tmp_path / "tiny.gguf", tokenizer=tiny_tokenizer())
    with pytest.raises(BadCheckpoint, match="has 320 tokens, the model has embeddings of 310"):
        write_tokenizer_files(open_checkpoint(path), output)


def test_gguf_carries_its_tokenizer(tmp_path: Path, output: Path) -> None:
    ours = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=VOCAB)
    path = write_gguf(
        model,
        tmp_path / "tiny.gguf",
        tokenizer=ours,
        metadata={"tokenizer.chat_template": TEMPLATE},
    )
    write_tokenizer_files(open_checkpoint(path), output)
    assert {path.name for path in output.iterdir()} == {
        "tokenizer.json",
        "chat_template.jinja",
        "generation_config.json",
        "special_tokens_map.json",
    }
    written = Tokenizer.from_file(str(output / "tokenizer.json"))
    text = "Why is the sky blue?<|end|>"
    assert written.encode(text, add_special_tokens=False).ids == ours.encode(text).ids
    assert (output / "chat_template.jinja").read_text() == TEMPLATE
    generation = json.loads((output / "generation_config.json").read_text())
    # `<|end|>` ends a turn though the file names `</s>` alone.
    assert generation == {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0}
    special = json.loads((output / "special_tokens_map.json").read_text())
    assert special == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def test_a_tokenizer_that_panics(source: Path, output: Path) -> None:
    tokenizer = json.loads((source / "tokenizer.json").read_bytes())
    missing = {"SpecialToken": {"id": "<missing>", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [missing],
        "pair": [],
        "special_tokens": {},
    }
    configure(source, "tokenizer.json", tokenizer)
    with pytest.raises(BadCheckpoint, match=r"tokenizer\.json cannot encode a text: no entry"):
        write(source, output)
