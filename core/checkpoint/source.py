"""Open a source model: configuration, tensors and license, from any kind of source.

A source is a local Hugging Face folder (safetensors only), a hub id or a `.gguf` file. Opening
loads no weights; `Checkpoint.tensor` reads one. torch is imported then: planning does not need it.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgelm.checkpoint.gguf.reader import GgufFile
from edgelm.checkpoint.gguf.tensors import GgufTensors
from edgelm.checkpoint.hub import fetch
from edgelm.checkpoint.license import read_license
from edgelm.checkpoint.named_tensors import named_tensors
from edgelm.checkpoint.quantized.method import Quantization, Reader, quantization_of
from edgelm.checkpoint.quantized.packed import PackedMatrix
from edgelm.checkpoint.refused_formats import check_config, check_folder
from edgelm.checkpoint.sentence_transformers import (
    MODULES,
    check_causal,
    embedding_settings,
    without_head,
)
from edgelm.checkpoint.text_part import text_config
from edgelm.checkpoint.weights.files import has_weights, weight_files
from edgelm.checkpoint.weights.folder_tensors import FolderTensors
from edgelm.checkpoint.weights.names import (
    Stored,
    check_shapes,
    check_stored,
    head_is_tied,
    tied_to_embedding,
)
from edgelm.checkpoint.weights.own_sizes import (
    check_left_out,
    left_out_outputs,
    stored_shapes,
)
from edgelm.checkpoint.weights.values import (
    Stamp,
    check_finite,
    check_finite_rows,
    check_unchanged,
    read_tensor,
    stamp,
)
from edgelm.embedding import EmbeddingSettings
from edgelm.errors import BadCheckpoint, BadInput
from edgelm.files.hashing import file_sha256
from edgelm.files.json_files import read_json_object, shown
from edgelm.planning import SOURCE
from edgelm.spec.config.config_fields import check_labels
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.tensor_shapes import HEAD_BIAS, HEAD_WEIGHT, Shapes, tensor_shapes

if TYPE_CHECKING:
    import torch

_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "LICENSE*", "README.md"]


@dataclass(frozen=True)
class Checkpoint:
    """An opened source model.

    `path` is a folder or a GGUF file; `name` is the source as the user gave it; `revision` is the
    commit of a hub id; `files` maps tensors to files, if there may be several; `left_out` are the
    modules of a multimodal model that are not part of its text decoder; `packed` are the matrices
    that are quantized already; `adapter` is the name of the adapter that is merged; `embedding` is
    how an embedding model makes vectors; `draft_head` are the tensors of a head that drafts tokens,
    by their names in it (edgelm.checkpoint.drafts.draft_head).
    """

    name: str
    path: Path
    config: dict[str, Any]
    spec: DecoderSpec
    shapes: Shapes
    read: Callable[[str], "torch.Tensor"]
    weight_files: tuple[Path, ...]
    revision: str | None = None
    license: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict, repr=False)
    left_out: tuple[str, ...] = ()
    packed: Mapping[str, PackedMatrix] = field(default_factory=dict, repr=False)
    adapter: str | None = None
    embedding: EmbeddingSettings | None = None
    draft_head: Stored = field(default_factory=dict, repr=False)
    _finite: set[str] = field(default_factory=set, repr=False, compare=False)
    _stamps: dict[Path, Stamp | None] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for path in self.weight_files:
            self._stamps.setdefault(path, stamp(path))

    def tensor(self, name: str) -> "torch.Tensor":
        """One tensor in its stored type; in fp32 where it is quantized.

        Raises:
            BadCheckpoint: it contains NaN or infinity, or its file was changed after opening.
        """
        with self._unchanged(*self._paths(name)):
            tensor = self.read(name)
        if name not in self._finite:
            check_finite(tensor, f"{self.files.get(name, self.path)}: {name}")
            self._finite.add(name)
        return tensor

    def rows(self, name: str, rows: "torch.Tensor") -> "torch.Tensor":
        """`tensor(name)[rows]` for rows int64 [R]; reads only these once all were checked."""
        count = self.shapes[name][0]
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < count:
            raise IndexError(f"{name} has {count} rows, not {rows.min()} to {rows.max()}")
        checked_gguf = isinstance(self.read, GgufTensors) and name in self._finite
        if not (checked_gguf or self.reads_rows(name)):
            return self.tensor(name)[rows]
        read: Any = self.read
        with self._unchanged(*self._paths(name)):
            if name not in self._finite:
                what = f"{self.files.get(name, self.path)}: {name}"
                check_finite_rows(lambda part: read.rows(name, part), count, what)
                self._finite.add(name)
            return read.rows(name, rows)  # type: ignore[no-any-return]

    def reads_rows(self, name: str) -> bool:
        """Whether `rows` reads no others."""
        has_rows = getattr(self.read, "has_rows", None)
        return has_rows is not None and has_rows(name)

    @contextmanager
    def _unchanged(self, *paths: Path) -> Iterator[None]:
        """Check before and after reading files that they are those that were opened."""
        for path in paths:
            check_unchanged(path, self._stamps.get(path))
        yield
        for path in paths:
            check_unchanged(path, self._stamps.get(path))

    def _paths(self, name: str) -> tuple[Path, ...]:
        if name in self.packed:
            return self.packed[name].paths
        return (self.files[name],) if name in self.files else self.weight_files

    def has(self, name: str) -> bool:
        """Whether the checkpoint stores a tensor of this name."""
        return name in self.shapes

    @property
    def loads_elsewhere(self) -> bool:
        """Whether transformers alone loads the same fp32 weights from its files."""
        if isinstance(self.read, GgufTensors):
            return self.read.read_by_transformers
        return self.adapter is None and not self.packed

    @property
    def keeps_levels(self) -> bool:
        """Whether one of edgelm's formats holds most quantized matrices exactly."""
        held = sum(one.precision is not None for one in self.packed.values())
        return 0 < len(self.packed) <= 2 * held

    @property
    def default_precision(self) -> str:
        """`source` for a quantized folder and a GGUF file whose levels can be kept, else `auto`."""
        keeps = self.keeps_levels if self.is_gguf else bool(self.packed)
        return SOURCE if keeps else "auto"

    @property
    def is_gguf(self) -> bool:
        """Whether the source is one GGUF file."""
        return self.path.is_file()

    def sha256(self, file_hash: Callable[[Path], str] = file_sha256) -> str:
        """SHA-256 of the weights: of the one file, or of the hashes of all shards.

        Args:
            file_hash: of a file, in hex; for callers that remember hashes.

        Raises:
            BadCheckpoint: a file was changed after opening.
        """
        hashes = []
        for path in self.weight_files:
            with self._unchanged(path):
                hashes.append(file_hash(path))
        if len(hashes) == 1:
            return hashes[0]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def check(self) -> None:
        """Raise BadCheckpoint unless it has exactly the tensors of its spec."""
        check_shapes(self.path, self.shapes, tensor_shapes(self.spec))


def open_checkpoint(source: str | Path, *, revision: str | None = None) -> Checkpoint:
    """Open a folder, a `.gguf` file or a hub id such as `HuggingFaceTB/SmolLM2-135M-Instruct`.

    Raises:
        BadInput: there is no such file or folder, and it cannot be fetched from the hub.
        BadCheckpoint: weights are missing, truncated, pickled or of the wrong shape.
        UnknownName: edgelm does not know the architecture.
    """
    path = Path(source)
    with _readable(path):
        if is_gguf(path) and path.is_file():
            return _open_gguf(str(source), path)
        if path.is_dir():
            return _open_folder(str(source), path)
        if path.exists():
            what = "a file" if path.is_file() else "not a regular file"
            raise BadInput(
                f"{path} is {what}; expected a Hugging Face folder, a .gguf file or a hub id"
            )
        if looks_like_hub_id(str(source)):
            folder = fetch(str(source), revision, _HUB_FILES)
            return _open_folder(str(source), folder, revision=folder.name)
    raise BadInput(
        f"no such file or folder: {path}; expected a Hugging Face folder, a .gguf file or a hub "
        "id such as HuggingFaceTB/SmolLM2-135M-Instruct"
    )


def source_folder(source: str | Path, *, files: list[str] = _HUB_FILES) -> tuple[Path, str | None]:
    """A local folder, or that of a hub id's files and its commit.

    Raises:
        BadInput: there is no such folder, and it cannot be fetched from the hub.
    """
    path = Path(source)
    with _readable(path):
        if path.is_dir():
            return path, None
        if not path.exists() and looks_like_hub_id(str(source)):
            folder = fetch(str(source), None, files)
            return folder, folder.name
    raise BadInput(f"no such folder: {path}; expected a Hugging Face folder or a hub id")


def read_spec(source: str | Path, *, revision: str | None = None) -> DecoderSpec:
    """Read a source's decoder spec without its weights; of a hub id only one small file.

    Raises:
        BadInput, BadCheckpoint, UnknownName: as `open_checkpoint`, for the files that are read.
    """
    path = Path(source)
    with _readable(path):
        if is_gguf(path) and path.is_file():
            return DecoderSpec.from_hf(GgufFile(path).config())
        if not path.exists() and looks_like_hub_id(str(source)):
            path = fetch(str(source), revision, ["config.json", MODULES])
        if path.is_dir():
            return _read_folder_spec(path)
    return open_checkpoint(source, revision=revision).spec  # raises the right error


def quantization_reader(source: str | Path, *, revision: str | None = None) -> Reader | None:
    """How a folder's or a hub id's configuration says that it is quantized; reads no weights."""
    path = Path(source)
    if not path.exists() and looks_like_hub_id(str(source)):
        path = fetch(str(source), revision, ["config.json", "*quant*config.json"])
    quantization = _read_config(path)[1] if path.is_dir() else None
    return None if quantization is None else quantization.reader()


def _read_folder_spec(folder: Path) -> DecoderSpec:
    config, quantization = _read_config(folder)
    spec = DecoderSpec.from_hf(config)
    if (folder / MODULES).exists():
        return without_head(spec)
    if spec.tie_word_embeddings and has_weights(folder):
        # A separate head in the file overrides the configuration.
        tensors = named_tensors(folder, weight_files(folder, config), spec, quantization)
        spec, _ = _resolve_head(spec, tensors.stored)
    return spec


def is_gguf(path: Path) -> bool:
    """Whether a name is that of a GGUF file; other systems write `.GGUF`, too."""
    return path.suffix.lower() == ".gguf"


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Name a path that the system rejects: too long, no permission, circular links."""
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"{shown(error.filename or str(path))} cannot be read: {error.strerror}"
        ) from None


def looks_like_hub_id(source: str) -> bool:
    """Whether a source that is no path may name a repository of the hub: OWNER/NAME."""
    parts = source.split("/")
    return len(parts) == 2 and all(parts) and not source.startswith((".", "/", "~"))


def _open_gguf(name: str, path: Path) -> Checkpoint:
    file = GgufFile(path)
    config = file.config()
    file.check_tensors()
    spec = DecoderSpec.from_hf(config)
    checkpoint = Checkpoint(
        name,
        file.path,
        config,
        spec,
        file.shapes,
        GgufTensors(file),
        file.paths,
        license=file.metadata.text("general.license"),
        packed=file.packed(),
    )
    checkpoint.check()
    return checkpoint


def _open_folder(name: str, folder: Path, *, revision: str | None = None) -> Checkpoint:
    config, quantization = _read_config(folder)
    configured = DecoderSpec.from_hf(config)
    embedding = embedding_settings(folder, configured)
    if embedding is not None:
        configured = without_head(configured)
    files = weight_files(folder, config)
    tensors = named_tensors(folder, files, configured, quantization)
    spec, stored = _resolve_head(configured, tensors.stored)
    # Later readers of the configuration must see the same as the spec.
    config |= {"tie_word_embeddings": spec.tie_word_embeddings}

    packed = tensors.packed
    quantized = {key: packed[one.name] for key, one in stored.items() if one.name in packed}
    found, shapes = {tensor: entry.shape for tensor, entry in stored.items()}, tensor_shapes(spec)
    check_stored(folder, stored, stored_shapes(spec, found))
    for left_out in left_out_outputs(spec):
        if left_out in stored:
            check_left_out(left_out, read_tensor(stored[left_out]))
    return Checkpoint(
        name,
        folder,
        config,
        spec,
        tensor_shapes(spec),
        FolderTensors(spec, stored, quantized),
        tuple(files),
        revision,
        read_license(folder),
        {tensor: entry.path for tensor, entry in stored.items() if not entry.parts},
        tensors.left_out,
        # Levels of padded matrices are read as weights.
        {name: one for name, one in quantized.items() if one.shape == shapes[name]},
        embedding=embedding,
        draft_head=tensors.draft_head,
    )


def _resolve_head(spec: DecoderSpec, stored: Stored) -> tuple[DecoderSpec, Stored]:
    """The spec and the tensors, after checking whether the head is the embedding."""
    if not spec.has_head:
        head = (HEAD_WEIGHT, HEAD_BIAS)
        return spec, {name: one for name, one in stored.items() if name not in head}
    tied = head_is_tied(stored, spec)
    spec = msgspec.structs.replace(spec, tie_word_embeddings=tied)
    return spec, tied_to_embedding(stored, spec) if tied else stored


def _read_config(folder: Path) -> tuple[dict[str, Any], Quantization | None]:
    """config.json of a folder, of a multimodal model the decoder's; and how it is quantized.

    Raises:
        BadCheckpoint: it is missing or damaged, quantized in a way that is not supported, or an
            adapter.
    """
    check_folder(folder)
    try:
        config = read_json_object(folder / "config.json")
    except FileNotFoundError:
        raise BadCheckpoint(
            f"{folder} has no config.json; expected a Hugging Face model folder"
        ) from None
    check_config(folder, config)
    check_causal(folder, config)
    check_labels(config)
    quantization = quantization_of(folder, config)
    if quantization is not None:
        quantization.reader()  # raises for those that are not supported
    return text_config(config), quantization
