"""Folders of sentence-transformers: what is read, and what is refused."""

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from edgelm.checkpoint.sentence_transformers import embedding_settings
from edgelm.checkpoint.source import open_checkpoint, read_spec
from edgelm.embedding import EmbeddingSettings
from edgelm.errors import BadCheckpoint
from edgelm.spec.groups import groups
from tests.checkpoints.sentence_folders import QUERY, change, module, save_sentence_model, write


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sentence_model(tmp_path_factory.mktemp("sentences") / "source")


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    shutil.copytree(source, tmp_path / "model")
    return tmp_path / "model"


def test_settings_are_read(source: Path) -> None:
    checkpoint = open_checkpoint(source)
    settings = checkpoint.embedding
    assert settings is not None
    assert (settings.pooling, settings.normalize, settings.max_tokens) == ("last", True, 200)
    assert settings.prompts == {"query": QUERY, "document": ""}
    assert not checkpoint.spec.has_head
    assert read_spec(source) == checkpoint.spec
    assert "lm_head" not in groups(checkpoint.spec)
    assert "embedding" in groups(checkpoint.spec)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("prefix", [True, False])
def test_a_base_model_has_no_head_whatever_it_says(
    tmp_path: Path, tied: bool, prefix: bool
) -> None:
    folder = save_sentence_model(tmp_path / "m", "qwen3", prefix=prefix, tie_word_embeddings=tied)
    checkpoint = open_checkpoint(folder)
    assert "lm_head.weight" not in checkpoint.shapes
    assert read_spec(folder) == checkpoint.spec


@pytest.mark.parametrize("name", ["qwen3", "phi"])
def test_a_head_in_the_file_is_left_out(tmp_path: Path, name: str) -> None:
    from tests.checkpoints.models import tiny_model

    folder = save_sentence_model(tmp_path / "m", name)
    tiny_model(name, vocab_size=320, tie_word_embeddings=False).save_pretrained(folder)
    shapes = open_checkpoint(folder).shapes
    assert not {"lm_head.weight", "lm_head.bias"} & shapes.keys()


@pytest.mark.parametrize("name", ["granite", "cohere"])
def test_what_scales_logits_scales_no_vectors(tmp_path: Path, name: str) -> None:
    """The last norm has that factor, and vectors that are not normalized would show it."""
    from edgelm.export.quantize.weights import Weights

    checkpoint = open_checkpoint(save_sentence_model(tmp_path / "m", name, normalize=False))
    assert torch.equal(Weights(checkpoint).norm("norm"), checkpoint.tensor("model.norm.weight"))


def test_without_modules_it_is_a_language_model(tmp_path: Path) -> None:
    folder = save_sentence_model(tmp_path / "m", tie_word_embeddings=True)
    (folder / "modules.json").unlink()
    checkpoint = open_checkpoint(folder)
    assert checkpoint.embedding is None
    assert checkpoint.spec.has_head


def test_pooling_of_newer_versions_is_read(folder: Path) -> None:
    write(folder, "1_Pooling/config.json", {"embedding_dimension": 64, "pooling_mode": "mean"})
    new = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
    modules = [module(0, "", "Transformer"), module(1, "1_Pooling", "Pooling") | {"type": new}]
    write(folder, "modules.json", modules)
    settings = embedding_settings(folder, read_spec(folder))
    assert settings is not None
    assert (settings.pooling, settings.normalize) == ("mean", False)


def test_missing_optional_files_have_defaults(folder: Path) -> None:
    (folder / "config_sentence_transformers.json").unlink()
    (folder / "sentence_bert_config.json").unlink()
    settings = embedding_settings(folder, read_spec(folder))
    assert settings is not None
    assert (settings.prompts, settings.max_tokens) == ({}, 256)


DENSE = [module(0, "", "Transformer"), module(1, "1_Pooling", "Pooling"), module(2, "2", "Dense")]


@pytest.mark.parametrize(
    ("modules", "error"),
    [
        (DENSE, "Dense"),
        ([module(0, "", "Transformer")], "lists the modules 'Transformer'"),
        ([], "none"),
        ({"a": 1}, "not a list of modules"),
        ([1], "not a list of modules"),
        ([{"type": 3}], "expected two texts"),
        ([module(0, "0_Transformer", "Transformer"), module(1, "1", "Pooling")], "0_Transformer"),
        ([module(0, "", "Transformer"), module(1, "../1", "Pooling")], "outside"),
        ([module(0, "", "Transformer"), module(1, "1\0", "Pooling")], "outside"),
        ([module(0, "", "Transformer"), module(1, "other", "Pooling")], "is missing"),
        ([module(0, "", "StaticEmbedding"), module(1, "", "Normalize")], "StaticEmbedding"),
    ],
)
def test_other_modules_are_refused(folder: Path, modules: Any, error: str) -> None:
    write(folder, "modules.json", modules)
    with pytest.raises(BadCheckpoint, match=error):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "fields", "error"),
    [
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": True}, "'mean' and 'lasttoken'"),
        ("1_Pooling/config.json", {"pooling_mode_lasttoken": False}, "not given"),
        ("1_Pooling/config.json", {"pooling_mode": "max"}, "'max'"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "cls"]}, "'mean' and 'cls'"),
        ("1_Pooling/config.json", {"word_embedding_dimension": 65}, "65 numbers"),
        ("1_Pooling/config.json", {"pooling_mode": "mean", "include_prompt": False}, "prompt"),
        ("config_sentence_transformers.json", {"prompts": ["a"]}, "texts by name"),
        ("config_sentence_transformers.json", {"prompts": {"a": 1}}, "texts by name"),
        ("config_sentence_transformers.json", {"default_prompt_name": "x"}, "'query'"),
        ("sentence_bert_config.json", {"max_seq_length": -1}, "-1"),
        ("sentence_bert_config.json", {"max_seq_length": True}, "True"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case"),
        ("config.json", {"use_bidirectional_attention": True}, "EmbeddingGemma"),
        ("config.json", {"is_causal": False}, "causal attention only"),
    ],
)
def test_what_is_not_computed_is_refused(
    folder: Path, name: str, fields: dict[str, Any], error: str
) -> None:
    change(folder, name, **fields)
    with pytest.raises(BadCheckpoint, match=error):
        open_checkpoint(folder)


def test_broken_json_names_the_file(folder: Path) -> None:
    (folder / "modules.json").write_text("[{")
    with pytest.raises(BadCheckpoint, match=r"modules\.json"):
        open_checkpoint(folder)


def test_a_causal_language_model_cannot_say_that_it_is_bidirectional(tmp_path: Path) -> None:
    folder = save_sentence_model(tmp_path / "m", tie_word_embeddings=True)
    (folder / "modules.json").unlink()
    change(folder, "config.json", use_bidirectional_attention=True)
    with pytest.raises(BadCheckpoint, match="bidirectional attention"):
        open_checkpoint(folder)


PROMPTS = "config_sentence_transformers.json"
JUNK: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1e300,
    "",
    "x" * 5000,
    [],
    [[]],
    {},
    {"a": [None]},
    "\0",
)


def test_any_value_of_any_field_is_read_or_refused(folder: Path) -> None:
    names = ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json", PROMPTS)
    spec = read_spec(folder)
    for name in names:
        good = (folder / name).read_text()
        for changed in _mutations(json.loads(good)):
            write(folder, name, changed)
            with suppress(BadCheckpoint):  # and no other error
                settings = embedding_settings(folder, spec)
                assert settings is not None
                assert msgspec.json.decode(msgspec.json.encode(settings), type=EmbeddingSettings)
        (folder / name).write_text(good)


def _mutations(value: Any) -> Iterator[Any]:
    """A value with junk in place of each of its parts."""
    yield from JUNK
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from ({**value, key: other} for other in _mutations(inner))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from ([*value[:at], other, *value[at + 1 :]] for other in _mutations(inner))
