"""A manifest that was changed: by damage, or by somebody who fixed its hashes up.

Damage must be noticed or change nothing. A forger may change what the model answers, since a
manifest without a signature says nothing of its author; reading a file that no hash covers or that
is outside the folder, and anything but an EdgeLMError, must not happen.
"""

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

from edgelm.bundle import MANIFEST
from tests.fuzz.bundles import check_reads
from tests.fuzz.bytewise import mutate_bytes
from tests.fuzz.kind import Case, Kind, Opened
from tests.fuzz.outcome import Wrong
from tests.fuzz.seal import sealed
from tests.fuzz.strange import NUMBERS, dump, look_up, mutate, paths
from tests.fuzz.tiny_bundle import answers_of, write_bundle
from tests.fuzz.watch import watching

Tree = dict[str, Any]
_SECRET = b'{"eos_token_id": 1, "secret": true}'
_PATHS = (
    *("../outside.json", "./model.onnx", "x/../model.onnx", "model.onnx/", "", ".", "..", "/"),
    *("outside", "a\x00b", "x" * 300, "x/" * 2000 + "y", "~/x", "..\\outside.json", "MODEL.ONNX"),
    *("C:\\outside.json", "file:outside.json", "/dev/zero", "/etc/passwd", "bundle.json", "é"),
)
_ENGINES = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "tensorrtevil", "onnxruntime", "", "x")


class Manifests(Kind):
    """Damage is noticed or changes nothing; a forgery reads nothing that it should not."""

    name = "manifest"

    def prepare(self, folder: Path) -> None:
        self.bundle = write_bundle(folder)
        self.text = (self.bundle / MANIFEST).read_bytes()
        self.answers = answers_of(self.bundle)

    def make(self, rng: Random, folder: Path) -> Case:
        bundle = folder / "bundle"
        shutil.copytree(self.bundle, bundle)
        (folder / "outside.json").write_bytes(_SECRET)
        (bundle / "outside").symlink_to("../outside.json")
        damaged = rng.random() < 0.4
        note = self._damage(rng, bundle / MANIFEST) if damaged else self._forge(rng, bundle)
        return Case(note, {"damaged": damaged})

    def check(self, folder: Path, case: Case, reference: Callable[[], None]) -> Opened:
        bundle = folder / "bundle"
        with watching() as seen:
            answers = answers_of(bundle)
        reference()
        check_reads(bundle, seen.opened)
        if seen.events:
            raise Wrong(f"loading did {', '.join(seen.events)}")
        if (folder / "outside.json").read_bytes() != _SECRET:
            raise Wrong("a file outside the bundle was changed")
        if answers == self.answers:
            return "equal"
        if case.facts["damaged"]:
            raise Wrong("it answers otherwise than the undamaged bundle")
        return "other"

    def _damage(self, rng: Random, path: Path) -> str:
        if rng.random() < 0.5:
            data, note = mutate_bytes(rng, self.text)
            path.write_bytes(data)
            return f"damaged: {note}"
        tree = json.loads(self.text)
        note = mutate(rng, tree)
        data, odd = dump(rng, tree)
        path.write_bytes(data)
        return f"damaged: {note} {odd}".rstrip()

    def _forge(self, rng: Random, bundle: Path) -> str:
        tree = json.loads(self.text)
        change = rng.choice((_fields, _fields, _fields, _path, _number, _file, _unlisted, _engine))
        note = change(rng, tree, bundle)
        data, odd = dump(rng, sealed(tree))
        (bundle / MANIFEST).write_bytes(data)
        return f"forged: {note} {odd}".rstrip()


def _fields(rng: Random, tree: Tree, bundle: Path) -> str:
    return "; ".join(mutate(rng, tree) for _ in range(rng.choice((1, 1, 1, 2, 3))))


def _path(rng: Random, tree: Tree, bundle: Path) -> str:
    """A file under another name, everywhere or in one place."""
    old, new = rng.choice(sorted(tree["files"])), rng.choice(_PATHS)
    if rng.random() < 0.5:
        tree["files"][new] = tree["files"].pop(old)
        if entry := _entry_of(bundle / new):
            tree["files"][new] = entry
    for field in ("file", "data"):
        if tree["graph"][field] == old or rng.random() < 0.3:
            tree["graph"][field] = new
    return f"{old} is {new[:40]!r}"


def _number(rng: Random, tree: Tree, bundle: Path) -> str:
    numbers = [path for path in paths(tree) if isinstance(look_up(tree, path), int | float)]
    limits = [path for path in numbers if path[0] in ("limits", "graph")]

    def number(rng: Random) -> Any:
        return rng.choice(NUMBERS)

    return mutate(rng, tree, value=number, among=rng.choice((numbers, limits)))


def _file(rng: Random, tree: Tree, bundle: Path) -> str:
    """A file changed, with its hash as the manifest has it."""
    name = rng.choice(sorted(tree["files"]))
    data, note = mutate_bytes(rng, (bundle / name).read_bytes())
    if name.endswith(".json") and rng.random() < 0.7:
        content = json.loads((bundle / name).read_bytes())
        note = mutate(rng, content)
        data = dump(rng, content)[0]
    (bundle / name).write_bytes(data)
    tree["files"][name] = _entry_of(bundle / name)
    return f"{name} with its hash: {note}"


def _unlisted(rng: Random, tree: Tree, bundle: Path) -> str:
    """A file without an entry, and not the one that was exported."""
    name = rng.choice(sorted(tree["files"]))
    del tree["files"][name]
    if rng.random() < 0.5:
        (bundle / name).write_bytes(mutate_bytes(rng, (bundle / name).read_bytes())[0])
    return f"{name} unlisted"


def _engine(rng: Random, tree: Tree, bundle: Path) -> str:
    """Engines that this machine lacks, and compiled ones that nobody compiled."""
    tree["engine"]["name"] = name = rng.choice(_ENGINES)
    if rng.random() < 0.7:
        file = rng.choice((*_PATHS, "model.onnx", "engines/x.engine", "engines/../../outside.json"))
        entry = {"file": file, "name": name, "version": "10.3", "sms": [87], "profiles": 1}
        entry |= {"graph_sha256": "00", "build_seconds": 1.0, "machine": "x"}
        tree["engines"] = [entry]
    if rng.random() < 0.5:
        mutate(rng, tree, among=[path for path in paths(tree) if path[0].startswith("engine")])
    return f"engine {name!r}, compiled: {str(tree.get('engines'))[:80]}"


def _entry_of(path: Path) -> Tree | None:
    try:
        data = path.read_bytes() if path.is_file() else None
    except (OSError, ValueError):
        return None
    if data is None:
        return None
    return {"bytes": len(data), "sha256": sha256(data).hexdigest()}
