"""Special tokens of a bundle: from their file, or from the configuration in older bundles."""

import json
import shutil
from pathlib import Path

import msgspec
import pytest

import edgelm
from edgelm.bundle import FileEntry, read_manifest
from edgelm.checkpoint.special_token_names import SPECIAL_TOKENS_FILE as FILE
from edgelm.errors import BadBundle
from edgelm.runtime import LanguageModel
from edgelm.runtime.engines.open import open_session
from edgelm.runtime.text.special_tokens import read_special_tokens


def test_no_file_means_an_older_bundle(tmp_path: Path) -> None:
    assert read_special_tokens(None) is None
    assert read_special_tokens(tmp_path / FILE) is None


def test_the_file_maps_names_to_texts(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"bos_token": "\uff5cé"}', encoding="utf-8")
    assert read_special_tokens(tmp_path / FILE) == {"bos_token": "\uff5cé"}


@pytest.mark.parametrize(
    "content",
    [
        *(b"{", b"[]", b'{"bos_token": 1}', b'{"bos_token": null}', b"\xff", b"[" * 100_000),
        b'{"bos_token": "a", "bos_token": "b"}',
    ],
    ids=["cut", "list", "number", "null", "not-utf-8", "deep", "twice"],
)
def test_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(BadBundle, match="special_tokens_map"):
        read_special_tokens(tmp_path / FILE)


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    (folder / "chat_template.jinja").write_text("{{ bos_token }}|{{ eos_token }}")
    return folder


def prompt(folder: Path, listed: bool) -> str:
    manifest = read_manifest(folder)
    if listed:
        files = manifest.files | {FILE: FileEntry(1, "0" * 64)}
        manifest = msgspec.structs.replace(manifest, files=files)
    session = open_session(folder, manifest, capacity=64, threads=1)
    with LanguageModel(folder, manifest, session) as lm:
        tokens = lm.chat_tokens([{"role": "user", "content": "hi"}])
        return "".join(str(lm.tokenizer.token(token)) for token in tokens.tolist())


def test_the_tokenizers_own_tokens_win(copy: Path) -> None:
    (copy / FILE).write_text(json.dumps({"eos_token": "<|end|>"}))
    assert prompt(copy, listed=True) == "|<|end|>"


def test_a_file_that_the_manifest_does_not_list_is_not_read(copy: Path) -> None:
    before = prompt(copy, listed=False)
    (copy / FILE).write_text(json.dumps({"eos_token": "<pad>"}))
    assert prompt(copy, listed=False) == before == "<s>|<|end|>"


def test_an_exported_bundle_loads(bundle: Path) -> None:
    with edgelm.load(bundle) as lm:
        assert lm.eos_token_ids == {2, 3}
