"""States of long beginnings on disk: read instead of computed, by the next program, too."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgelm
from edgelm.errors import BadInput
from edgelm.runtime import LanguageModel, Message

SYSTEM = "The miller waits until the level outside has dropped below the wheel. " * 2
COUNT = 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cached(bundle: Path, folder: Path) -> Iterator[LanguageModel]:
    with edgelm.load(bundle, threads=1, prompt_cache=folder) as lm:
        yield lm


def ask(question: str, system: str = SYSTEM) -> list[Message]:
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def test_the_next_program_reads_it(cached: LanguageModel, bundle: Path, folder: Path) -> None:
    first = cached.generate(ask("Why?"), max_tokens=COUNT)
    assert first.usage.cached_tokens == 0
    assert len(list(folder.iterdir())) == 1
    with edgelm.load(bundle, threads=1, prompt_cache=folder) as other:
        reply = other.generate(ask("a"), max_tokens=COUNT)
        assert reply.usage.cached_tokens > 64
        assert reply.timings.prefilled < 20
        # What is in memory is not read from the disk.
        again = other.generate(ask("b"), max_tokens=COUNT)
        assert again.usage.cached_tokens >= reply.usage.cached_tokens
    with edgelm.load(bundle, threads=1) as plain:
        assert plain.generate(ask("a"), max_tokens=COUNT).text == reply.text
    assert len(list(folder.iterdir())) == 1


def test_chats_use_it_too(cached: LanguageModel, folder: Path) -> None:
    cached.chat(SYSTEM).send("Why?", max_tokens=COUNT).read()
    assert len(list(folder.iterdir())) == 1


def test_short_beginnings_are_not_stored(cached: LanguageModel, folder: Path) -> None:
    cached.generate(ask("Why? " * 15, system="Be brief."), max_tokens=COUNT)
    cached.generate(list(range(10, 110)), max_tokens=COUNT)
    assert list(folder.iterdir()) == []


def test_a_damaged_file_is_said_and_replaced(
    cached: LanguageModel, bundle: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = cached.generate(ask("Why?"), max_tokens=COUNT).text
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with edgelm.load(bundle, threads=1, prompt_cache=folder) as other:
        with caplog.at_level(logging.WARNING):
            assert other.generate(ask("Why?"), max_tokens=COUNT).text == text
        assert "does not match its own hash" in caplog.text
    with edgelm.load(bundle, threads=1, prompt_cache=folder) as third:
        assert third.generate(ask("Why?"), max_tokens=COUNT).usage.cached_tokens > 64


def test_what_cannot_be_removed_is_said_and_left(
    cached: LanguageModel, bundle: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = cached.generate(ask("Why?"), max_tokens=COUNT).text
    (file,) = folder.iterdir()
    file.unlink()
    file.mkdir()
    with edgelm.load(bundle, threads=1, prompt_cache=folder) as other:
        with caplog.at_level(logging.WARNING):
            assert other.generate(ask("Why?"), max_tokens=COUNT).text == text
        assert "is not a file" in caplog.text
    assert file.is_dir()


def test_the_least_recently_used_goes(bundle: Path, folder: Path) -> None:
    systems = [f"{n} {SYSTEM}" for n in range(3)]
    with edgelm.load(bundle, threads=1, prompt_cache=folder) as lm:
        lm.generate(ask("Why?", systems[0]), max_tokens=1)
        (first,) = folder.iterdir()
        lm.generate(ask("Why?", systems[1]), max_tokens=1)
        second = next(path for path in folder.iterdir() if path != first)
        size = first.stat().st_size
    os.utime(second, (1, 1))
    with edgelm.load(
        bundle, threads=1, prompt_cache=folder, prompt_cache_size=int(2.5 * size)
    ) as lm:
        lm.generate(ask("Why?", systems[2]), max_tokens=1)
    assert not second.exists()
    assert first.exists()
    assert len(list(folder.iterdir())) == 2
    with edgelm.load(bundle, threads=1, prompt_cache=folder, prompt_cache_size="1KB") as lm:
        lm.generate(ask("Why?", f"9 {SYSTEM}"), max_tokens=1)
    assert len(list(folder.iterdir())) == 2


def test_folders_and_sizes_that_cannot_be_used(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be created"):
        edgelm.load(bundle, threads=1, prompt_cache=tmp_path / "file")
    with pytest.raises(BadInput, match="cannot be created: embedded null"):
        edgelm.load(bundle, threads=1, prompt_cache="a\0b")
    with pytest.raises(BadInput, match="prompt_cache_size: 'lots' is not a size"):
        edgelm.load(bundle, threads=1, prompt_cache=tmp_path, prompt_cache_size="lots")
