"""A bundle whose files were damaged, swapped or replaced, with the hashes as they were."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from edgelm.bundle import MANIFEST, read_manifest
from tests.fuzz.bytewise import mutate_bytes
from tests.fuzz.kind import Case, Kind, Opened
from tests.fuzz.outcome import Wrong
from tests.fuzz.tiny_bundle import answers_of, write_bundle
from tests.fuzz.watch import watching

_SECRET = b'{"secret": 1}'
Change = Callable[[Random, Path, Path], str]


class Bundles(Kind):
    """What loads must answer as the whole bundle does, and read only files that a hash covers."""

    name = "bundle"

    def prepare(self, folder: Path) -> None:
        self.bundle = write_bundle(folder)
        self.names = sorted(path.name for path in self.bundle.iterdir())
        self.answers = answers_of(self.bundle)

    def make(self, rng: Random, folder: Path) -> Case:
        bundle = folder / "bundle"
        shutil.copytree(self.bundle, bundle)
        (folder / "outside.json").write_bytes(_SECRET)
        # The manifest is what no hash of a file covers: a third of the cases.
        name = MANIFEST if rng.random() < 0.33 else rng.choice(self.names)
        change = rng.choice([*[_mutate] * 6, *_CHANGES])
        return Case(f"{name}: {change(rng, bundle, bundle / name)}")

    def check(self, folder: Path, case: Case, reference: Callable[[], None]) -> Opened:
        bundle = folder / "bundle"
        with watching() as seen:
            answers = answers_of(bundle)
        reference()
        check_reads(bundle, seen.opened)
        if (folder / "outside.json").read_bytes() != _SECRET:
            raise Wrong("a file outside the bundle was changed")
        if answers != self.answers:
            raise Wrong("it answers otherwise than the undamaged bundle")
        return "equal"


def check_reads(bundle: Path, opened: list[Path]) -> None:
    """Raise Wrong where a file was read that is outside, or that no hash covers."""
    listed = {*read_manifest(bundle).files, MANIFEST}
    root, parent = bundle.resolve(), bundle.parent.resolve()
    for path in opened:
        if not path.is_absolute() or not path.is_relative_to(parent):
            continue
        resolved = path.resolve()
        if not resolved.is_relative_to(root):
            raise Wrong(f"{path.name}, which is outside the bundle, was read")
        if resolved.is_file() and resolved.relative_to(root).as_posix() not in listed:
            raise Wrong(f"{path.name}, which has no hash, was read")


def _mutate(rng: Random, bundle: Path, path: Path) -> str:
    data, what = mutate_bytes(rng, path.read_bytes())
    path.write_bytes(data)
    return what


def _swap(rng: Random, bundle: Path, path: Path) -> str:
    other = rng.choice(sorted(bundle.iterdir()))
    ours, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(ours)
    return f"swapped with {other.name}"


def _remove(rng: Random, bundle: Path, path: Path) -> str:
    path.unlink()
    return "removed"


def _folder(rng: Random, bundle: Path, path: Path) -> str:
    path.unlink()
    path.mkdir()
    return "a folder"


def _pipe(rng: Random, bundle: Path, path: Path) -> str:
    path.unlink()
    os.mkfifo(path)
    return "a pipe"


def _link(rng: Random, bundle: Path, path: Path) -> str:
    path.unlink()
    target = rng.choice(("../outside.json", "/dev/zero", "/dev/null", "nowhere", path.name, "."))
    path.symlink_to(target)
    return f"a link to {target}"


def _moved_out(rng: Random, bundle: Path, path: Path) -> str:
    outside = bundle.parent / path.name
    path.rename(outside)
    path.symlink_to(outside)
    return "a link to itself, outside"


def _large(rng: Random, bundle: Path, path: Path) -> str:
    os.truncate(path, 4 * 10**9)  # sparse: takes no disk
    return "4 GB of zeros behind it"


def _text(rng: Random, bundle: Path, path: Path) -> str:
    path.write_bytes(rng.choice((b"", b"null", b"[]", b"0", b'""', b"\xff\xfe", b"[" * 10**6)))
    return "something else in it"


def _added(rng: Random, bundle: Path, path: Path) -> str:
    names = (
        "special_tokens_map.json",
        "config.json",
        "tokenizer_config.json",
        "chat_template.json",
    )
    name = rng.choice((*names, "added_tokens.json", "model.onnx_data", "adapter_config.json"))
    (bundle / name).write_bytes(rng.choice((b"{}", b"x", _SECRET, path.read_bytes())))
    return f"{name} added"


_CHANGES: tuple[Change, ...] = (
    *(_swap, _remove, _folder, _pipe, _link, _moved_out, _large, _text, _added),
)
