"""Only folders that edgelm wrote are replaced, and nothing that somebody added is lost."""

from pathlib import Path

import pytest

from edgelm.errors import BadInput
from edgelm.files.staging import check_replaceable, check_separate, staged_folder
from tests.core.files.staged_writer import MARKER, listing, write
from tests.folders import contents

MINE = ["notes.txt", "inner/notes.txt", "hf/model.safetensors", "empty/", ".git/HEAD", "x.gguf"]


@pytest.mark.parametrize("mine", MINE)
def test_what_was_put_into_an_output_is_never_removed(tmp_path: Path, mine: str) -> None:
    target = tmp_path / "bundle"
    write(target, "old")
    path = target / mine
    path.parent.mkdir(exist_ok=True)
    if mine.endswith("/"):
        path.mkdir()
    else:
        path.write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(BadInput, match=r"contains '.*', which edgelm did not write; move it"):
        write(target, "new")
    assert contents(tmp_path) == before
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_in_an_output_is_somebodys(tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "bundle", tmp_path / "elsewhere"
    write(target, "old")
    elsewhere.mkdir()
    (elsewhere / "data").write_text("x")
    (target / "inner").symlink_to(elsewhere)
    with pytest.raises(BadInput, match="contains 'inner'"):
        write(target, "new")
    assert contents(elsewhere) == {"data": b"x"}


@pytest.mark.parametrize("can_exchange", [False, True])
def test_what_comes_while_it_is_written_is_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    can_exchange: bool,
) -> None:
    if not can_exchange:
        monkeypatch.setattr("edgelm.files.staging.exchange", lambda *_: False)
    target = tmp_path / "bundle"
    write(target, "old")
    with staged_folder(target, marker=MARKER, listing=listing) as folder:
        (folder / MARKER).write_text("new")
        (target / "notes.txt").write_text("mine")
    assert contents(target) == {MARKER: b"new"}
    [kept] = set(tmp_path.iterdir()) - {target}
    assert contents(kept) == {MARKER: b"old", "notes.txt": b"mine"}
    assert "'notes.txt' appeared in" in caplog.text


def test_a_folder_that_became_somebodys_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "bundle"

    def fails() -> None:
        with staged_folder(target, marker=MARKER, listing=listing) as folder:
            (folder / MARKER).write_text("new")
            target.mkdir()
            (target / "thesis.txt").write_text("mine")

    with pytest.raises(BadInput, match="is not replaced"):
        fails()
    assert contents(tmp_path) == {"bundle/thesis.txt": b"mine"}
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bundle", "is inside the output"),
        ("bundle/hf", "is inside the output"),
        ("link", "is inside the output"),
        (".", r"is inside the source"),
    ],
)
def test_inputs_are_apart_from_the_output(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "bundle" / "hf").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "bundle" / "hf")
    with pytest.raises(BadInput, match=message):
        check_separate(tmp_path / "bundle", {"source": tmp_path / name})
    check_separate(tmp_path / "bundle", {"source": tmp_path / "bundle2", "x": Path("some/hub-id")})
    (tmp_path / "bundle2").mkdir()
    check_separate(tmp_path / "bundle", {"source": tmp_path / "bundle2"})


def test_refuses_a_folder_without_the_marker(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match=r"contains no bundle\.json, so it is not replaced"):
        write(tmp_path, "new")
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_refuses_a_file(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.write_text("x")
    with pytest.raises(BadInput, match="is a file; expected a folder to write to"):
        write(path, "new")
    assert path.read_text() == "x"


def test_empty_folder_is_filled(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    check_replaceable(target, marker=MARKER)
    write(target, "new")
    assert contents(target) == {MARKER: b"new"}
