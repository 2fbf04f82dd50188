"""The files of a bundle and their hashes.

Only files that the manifest lists are used. They must not change between check and use: compare
`file_states` before and after.
"""

import os
from collections.abc import Iterable
from hashlib import sha256
from io import BufferedReader
from pathlib import Path

from edgelm.bundle.known_hashes import KnownHashes
from edgelm.bundle.manifest import FileEntry, GraphContract, Manifest
from edgelm.bundle.manifest_file import DRAFT, MANIFEST
from edgelm.bundle.paths import FileState, file_state, inside, open_plain, open_state
from edgelm.bundle.roles import gives_hidden
from edgelm.errors import BadBundle, BadInput
from edgelm.files.hashing import file_sha256, stream_sha256
from edgelm.reasons import reason
from edgelm.spec.assistant import read_layers, with_sources

TOKENIZER = "tokenizer.json"
SIGNATURE = "signature.json"
# Files that readers open by these names if they exist.
_OPTIONAL = ("chat_template.jinja", "generation_config.json", "special_tokens_map.json")

States = dict[str, FileState | None]


def hash_files(folder: Path) -> dict[str, FileEntry]:
    """Entries for every file below `folder`, by relative path, but the manifest and signature."""
    return {
        path.relative_to(folder).as_posix(): FileEntry(path.stat().st_size, file_sha256(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, SIGNATURE)
    }


def graph_sha256(folder: Path, graph: GraphContract) -> str:
    """One hash for a graph's files, its weights included."""
    return _together(file_sha256(folder / name) for name in graph.files)


def listed_graph_sha256(manifest: Manifest) -> str:
    """The same hash, computed from those in the manifest.

    Raises:
        BadBundle: the manifest does not list one of them.
    """
    names = manifest.graph.files
    for name in names:
        _check_has_entry(manifest, name)
    return _together(manifest.files[name].sha256 for name in names)


def engine_files(manifest: Manifest) -> list[str]:
    """All compiled files that the manifest names."""
    return [file for engine in manifest.engines for file in engine.files]


def bundle_file(folder: Path, manifest: Manifest, name: str) -> Path | None:
    """The path of a listed file; None if the manifest does not list it.

    Raises:
        BadBundle: it is missing, not a regular file, or a link out of the bundle.
    """
    if name not in manifest.files:
        return None
    path = inside(folder, name)
    if not os.path.lexists(path):
        raise BadBundle(f"{folder} lacks {name}; copy or export it again")
    open_plain(path).close()
    return path


def verify(
    folder: Path, manifest: Manifest, *, hashes: bool = True, known: KnownHashes | None = None
) -> None:
    """Check that every listed file is there and unchanged, and that every needed file is listed.

    Args:
        folder: the bundle.
        manifest: its manifest.
        hashes: also compare sizes and hashes.
        known: hashes that were computed before; those of data files are taken from it.

    Raises:
        BadBundle: for the first file that fails.
    """
    _check_listed(folder, manifest)
    native = set(engine_files(manifest))
    for name, entry in manifest.files.items():
        path = bundle_file(folder, manifest, name)
        if hashes and path is not None:
            _compare(path, entry, None if name in native else known)
    if known is not None:
        known.save()


def check_draft(folder: Path, manifest: Manifest, draft: Manifest) -> None:
    """Check that what a draft model opens is listed by the bundle that it is in, with its hash.

    Args:
        folder: of the draft model.
        manifest: of the bundle, which is what `verify` compares files with.
        draft: of the draft model.

    Raises:
        BadBundle: a file is not listed, or with another hash.
    """
    _check_listed(folder, draft)
    if draft.spec.draft_head:
        _check_belongs(folder, manifest, draft)
    if draft.spec.assistant is not None:
        _check_assistant(folder, manifest, draft)
    for name, entry in draft.files.items():
        if manifest.files.get(f"{DRAFT}/{name}") != entry:
            raise BadBundle(
                f"{folder.parent / MANIFEST} does not list {DRAFT}/{name} as {folder / MANIFEST} "
                f"does; {_made_again(draft)}"
            )


def _made_again(draft: Manifest) -> str:
    """How to make a draft of its kind again."""
    if draft.spec.draft_head:
        return "export the model again with --draft-head"
    if draft.spec.assistant is not None:
        return "export the model again with --assistant"
    return "make the draft model again (edge-export DRAFT --draft-for BUNDLE)"


def _check_belongs(folder: Path, manifest: Manifest, draft: Manifest) -> None:
    """Raise BadBundle unless a draft head reads what the model's graph gives."""
    sizes = [(one.spec.hidden_size, one.spec.vocab_size) for one in (manifest, draft)]
    if sizes[0] != sizes[1] or not gives_hidden(manifest.graph):
        given = f"{sizes[0][0]} numbers" if gives_hidden(manifest.graph) else "no hidden states"
        raise BadBundle(
            f"{folder} is a draft head that reads hidden states of {sizes[1][0]} numbers and has "
            f"{sizes[1][1]} tokens, but the model in {folder.parent} gives {given} and has "
            f"{sizes[0][1]} tokens; export the model again with --draft-head"
        )


def _check_assistant(folder: Path, manifest: Manifest, draft: Manifest) -> None:
    """Raise BadBundle unless an assistant reads what the model's graph gives and holds."""
    try:
        sources = with_sources(draft.spec, manifest.spec)
    except BadInput as error:
        raise BadBundle(f"{folder}: {error}; export the model again with --assistant") from None
    layers = zip(manifest.spec.cache_layers, manifest.graph.cache.layers, strict=True)
    cut = {index for index, layer in layers if layer.rows is not None}
    wrong = "reads other layers" if sources != draft.spec else ""
    if manifest.kv != draft.kv:
        wrong = f"reads a cache of type {draft.kv}, and the model's is {manifest.kv}"
    elif not gives_hidden(manifest.graph):
        wrong = "needs hidden states, which the model does not give"
    elif cut.intersection(read_layers(draft.spec)):
        wrong = "reads layers of which the model keeps a window only"
    if wrong:
        raise BadBundle(
            f"{folder} is an assistant that does not belong to the model in {folder.parent}: it "
            f"{wrong}; export the model again with --assistant"
        )


def file_states(folder: Path, manifest: Manifest) -> States:
    """The states of all files that the manifest lists, and of the manifest."""
    return {name: file_state(folder / name) for name in (MANIFEST, *manifest.files)}


def _check_listed(folder: Path, manifest: Manifest) -> None:
    graph = manifest.graph
    alone = not manifest.spec.draft_head and manifest.spec.assistant is None
    texts = (TOKENIZER,) if alone else ()
    for name in (*graph.files, *texts, *engine_files(manifest)):
        _check_has_entry(manifest, name)
    for name in _OPTIONAL:
        if name not in manifest.files and os.path.lexists(folder / name):
            raise BadBundle(
                f"{folder} contains {name}, which {MANIFEST} does not list: its origin is "
                "unknown; remove it, or copy or export the bundle again"
            )


def _check_has_entry(manifest: Manifest, name: str) -> None:
    if name not in manifest.files:
        raise BadBundle(f"{MANIFEST} does not list {name}; export the bundle again")


def _compare(path: Path, entry: FileEntry, known: KnownHashes | None) -> None:
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size != entry.bytes:
            raise BadBundle(
                f"{path} has {size} bytes, the manifest says {entry.bytes}: truncated or changed; "
                "copy or export it again"
            )
        try:
            digest = _digest(file, known)
        except OSError as error:
            raise BadBundle(
                f"{path} cannot be read: {reason(error)}; copy or export it again"
            ) from None
        if digest != entry.sha256:
            raise BadBundle(
                f"{path} does not match its SHA-256 in {MANIFEST}: damaged or changed; copy or "
                "export it again"
            )


def _digest(file: BufferedReader, known: KnownHashes | None) -> str:
    """The hash of an open file, computed before or now."""
    before = open_state(file)
    digest = None if known is None else known.find(before)
    if digest is None:
        digest = stream_sha256(file)
        if known is not None and open_state(file) == before:
            known.add(before, digest)
    return digest


def _together(hashes: Iterable[str]) -> str:
    return sha256("".join(hashes).encode()).hexdigest()
