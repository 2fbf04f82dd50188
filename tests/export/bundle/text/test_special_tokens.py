"""Chat prompts have the special tokens that transformers puts there; all ends of an answer."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from edgelm.checkpoint.source import open_checkpoint
from edgelm.errors import BadCheckpoint
from edgelm.export.bundle.text.tokenizer_files import write_tokenizer_files
from edgelm.runtime.text.chat import ChatTemplate
from edgelm.runtime.text.special_tokens import read_special_tokens

SPECIAL = ["<|endoftext|>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<pad>", "<unk>"]
CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}"
    "{{ unk_token }}{{ pad_token }}{% endfor %}"
)
DEFINED = "{% if bos_token is defined %}a{{ bos_token }}{% endif %}{{ messages[0].content }}"
TALK = [
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "So."},
    {"role": "user", "content": "And?"},
]
CLASS = {"tokenizer_class": "PreTrainedTokenizerFast"}


@pytest.fixture
def source(tiny_chat: Path, tmp_path: Path) -> Path:
    """A model folder whose tokenizer has the special tokens of several families."""
    folder = shutil.copytree(tiny_chat, tmp_path / "source")
    (folder / "chat_template.jinja").unlink()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["Why is the sky blue?"], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def configure(source: Path, **files: dict[str, Any] | None) -> None:
    """Write JSON files; ids are merged into config.json."""
    config = json.loads((source / "config.json").read_text())
    ids = files.pop("ids", None) or {}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        config.pop(key, None)
    (source / "config.json").write_text(json.dumps(config | ids))
    (source / "generation_config.json").write_text(json.dumps(ids))
    for name, values in files.items():
        if values is not None:
            (source / f"{name}.json").write_text(json.dumps(values))


def written(source: Path, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    write_tokenizer_files(open_checkpoint(source), folder)
    generation: dict[str, Any] = json.loads((folder / "generation_config.json").read_text())
    return generation


def prompt(folder: Path) -> str:
    tokens = read_special_tokens(folder / "special_tokens_map.json")
    assert tokens is not None
    return ChatTemplate(folder / "chat_template.jinja", special_tokens=tokens).render(TALK)  # type: ignore[arg-type]


STYLES: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None, dict[str, Any]]] = {
    "olmo": (
        CHATML,
        {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
        None,
        {"eos_token_id": 0},
    ),
    "chatml-fine-tune": (
        TURNS,
        {"bos_token": "<s>", "eos_token": "<|im_end|>"},
        None,
        {"bos_token_id": 1, "eos_token_id": 2},
    ),
    "qwen": (
        CHATML,
        {"bos_token": None, "eos_token": "<|im_end|>"},
        None,
        {"bos_token_id": 0, "eos_token_id": 4},
    ),
    "several-ends": (
        TURNS,
        {"bos_token": "<s>", "eos_token": "<|im_end|>"},
        None,
        {"bos_token_id": 1, "eos_token_id": [2, 0, 4]},
    ),
    "shifted-ids": (
        TURNS,
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        None,
        {"bos_token_id": 0, "eos_token_id": 1},
    ),
    "tokens-as-objects": (
        TURNS,
        {
            "bos_token": {"__type": "AddedToken", "content": "<s>", "special": True},
            "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
        },
        None,
        {"eos_token_id": 2},
    ),
    "bos-only-in-the-map": (
        TURNS,
        {"eos_token": "</s>"},
        {"bos_token": "<s>", "unk_token": {"content": "<unk>", "lstrip": False}},
        {"eos_token_id": 2},
    ),
    "map-against-configuration": (
        TURNS,
        {"bos_token": "<pad>", "eos_token": "</s>"},
        {"bos_token": "<s>"},
        {"eos_token_id": 2},
    ),
    "newer-configuration": (
        TURNS,
        {"bos_token": "<s>", "eos_token": "</s>", "added_tokens_decoder": {}},
        {"bos_token": "<pad>", "unk_token": "<unk>"},
        {"eos_token_id": 2},
    ),
    "none-named": (TURNS, {}, None, {"bos_token_id": 1, "eos_token_id": 2}),
    "none-defined": (DEFINED, {"bos_token": None}, None, {"bos_token_id": 1, "eos_token_id": 2}),
}


@pytest.mark.parametrize("style", STYLES)
def test_prompts_are_those_of_transformers(source: Path, tmp_path: Path, style: str) -> None:
    template, config, legacy, ids = STYLES[style]
    configure(
        source,
        tokenizer_config=CLASS | config | {"chat_template": template},
        special_tokens_map=legacy,
        ids=ids,
    )
    written(source, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    expected = tokenizer.apply_chat_template(TALK, add_generation_prompt=True, tokenize=False)
    assert prompt(tmp_path / "out") == expected


@pytest.mark.parametrize("style", [name for name in STYLES if name != "none-named"])
def test_the_files_alone_say_the_same_as_transformers(
    source: Path, tmp_path: Path, style: str
) -> None:
    """A tokenizer with code of its own, which is never run, has its named tokens all the same."""
    template, config, legacy, ids = STYLES[style]
    values = CLASS | config | {"chat_template": template}
    configure(source, tokenizer_config=values, special_tokens_map=legacy, ids=ids)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    values |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    configure(source, tokenizer_config=values, special_tokens_map=legacy, ids=ids)
    ran = source / "ran"
    (source / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
    written(source, tmp_path / "out")
    expected = tokenizer.apply_chat_template(TALK, add_generation_prompt=True, tokenize=False)
    assert prompt(tmp_path / "out") == expected
    assert not ran.exists()


def test_a_source_that_names_none_keeps_the_ids_of_its_configuration(
    source: Path, tmp_path: Path
) -> None:
    configure(source, ids={"bos_token_id": 1})
    written(source, tmp_path / "out")
    assert not (tmp_path / "out" / "special_tokens_map.json").exists()


@pytest.mark.parametrize(
    ("template", "eos", "ids", "ends"),
    [
        (TURNS, "<|im_end|>", {"eos_token_id": 2}, [2, 4]),
        (CHATML, "</s>", {"eos_token_id": 2}, [2, 4]),
        (CHATML, None, {}, [4]),
        (TURNS, "</s>", {"eos_token_id": [2, 0]}, [2, 0]),
        (TURNS, None, {}, None),
        (TURNS, None, {"eos_token_id": -1, "pad_token_id": -1}, None),
    ],
    ids=["tokenizer's", "template's", "template's-alone", "same", "none", "minus-one"],
)
def test_every_place_that_names_an_end(
    source: Path, tmp_path: Path, template: str, eos: str | None, ids: dict[str, Any], ends: Any
) -> None:
    values = CLASS | {"eos_token": eos, "chat_template": template}
    configure(source, tokenizer_config=values, ids=ids)
    assert written(source, tmp_path / "out").get("eos_token_id") == ends


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("tokenizer_config", {"bos_token": 5}, r"tokenizer_config\.json: bos_token is 5, expected"),
        ("special_tokens_map", {"eos_token": [1]}, r"eos_token is \[1\], expected a token's text"),
        ("generation_config", {"eos_token_id": "</s>"}, "eos_token_id is '</s>', expected a token"),
        ("generation_config", {"eos_token_id": [2, "x"]}, r"eos_token_id is \[2, 'x'\], expected"),
        ("generation_config", {"temperature": "hot"}, "temperature is 'hot', expected a number"),
        ("generation_config", {"top_k": 2.5}, r"top_k is 2\.5, expected a number"),
        ("generation_config", {"do_sample": "yes"}, "do_sample is 'yes', expected true or false"),
        ("generation_config", {"do_sample": True, "top_p": 2}, "top_p is 2, expected a number abo"),
        ("tokenizer_config", {"chat_template": 5}, "chat_template is 5, expected a text"),
        (
            "tokenizer_config",
            {"chat_template": "{% for %}"},
            "the chat template of .*source does not parse: .*; repair it",
        ),
    ],
)
def test_what_the_runtime_could_not_use_is_refused(
    source: Path, tmp_path: Path, name: str, values: dict[str, Any], message: str
) -> None:
    (source / f"{name}.json").write_text(json.dumps(values))
    with pytest.raises(BadCheckpoint, match=message):
        written(source, tmp_path / "out")


def test_a_template_is_utf_8_whatever_the_locale(source: Path, tmp_path: Path) -> None:
    text = "{{ messages[0].content }}\uff5cé\r\n"
    (source / "chat_template.jinja").write_bytes(text.encode())
    written(source, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_bytes() == text.encode()
    (source / "chat_template.jinja").write_bytes(b"{{ bos_token }}\xff")
    with pytest.raises(BadCheckpoint, match=r"chat_template\.jinja is not encoded in UTF-8"):
        written(source, tmp_path / "other")
