"""A source model: its configuration, its tensors one at a time, its tokenizer.

Three kinds of source look alike after `open_checkpoint`: a local Hugging Face folder
(safetensors only), a hub id, a `.gguf` file. Nothing is loaded on opening; `tensor` maps the one
tensor asked for. torch is imported on the first read, so that planning needs none.
"""

import hashlib
import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelm.errors import BadCheckpoint, BadInput, MissingPackage
from edgelm.gguf import GgufFile
from edgelm.hashing import file_sha256
from edgelm.spec import DecoderSpec
from edgelm.tensors import Shapes, tensor_shapes

if TYPE_CHECKING:
    import torch

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "LICENSE*", "README.md"]


@dataclass(frozen=True)
class Checkpoint:
    """An opened source model.

    `path` is a folder or a GGUF file; `name` is what the user called it; `revision` is the
    commit for a hub id.
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

    def tensor(self, name: str) -> "torch.Tensor":
        """One tensor in its stored type (fp32 for a GGUF file), mapped from the file."""
        return self.read(name)

    def has(self, name: str) -> bool:
        """Whether the checkpoint stores a tensor of this name."""
        return name in self.shapes

    @property
    def is_gguf(self) -> bool:
        """Whether the source is one GGUF file."""
        return self.path.is_file()

    def sha256(self) -> str:
        """Hash of the weights: one file's own hash, or the hash over all shards' hashes."""
        hashes = [file_sha256(path) for path in self.weight_files]
        if len(hashes) == 1:
            return hashes[0]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def check(self) -> None:
        """Raise BadCheckpoint unless every tensor of the spec is there in the right shape."""
        expected = tensor_shapes(self.spec)
        missing = [name for name in expected if name not in self.shapes]
        if missing:
            raise BadCheckpoint(
                f"{self.path} lacks {len(missing)} of {len(expected)} tensors, first "
                f"{missing[0]!r}; is a shard missing, or config.json from another model?"
            )
        for name, shape in expected.items():
            if self.shapes[name] != shape:
                raise BadCheckpoint(
                    f"{self.path}: {name} has shape {list(self.shapes[name])}, config.json "
                    f"implies {list(shape)}; is config.json from another model?"
                )


def open_checkpoint(source: str | Path, *, revision: str | None = None) -> Checkpoint:
    """Open a folder, a `.gguf` file or a hub id such as `HuggingFaceTB/SmolLM2-135M-Instruct`.

    Raises:
        BadInput: there is no such file or folder, and no hub to fetch it from.
        BadCheckpoint: weights are missing, truncated, pickled or of the wrong shape.
        UnknownName: an architecture that edgelm does not know.
    """
    path = Path(source)
    if path.suffix == ".gguf" and path.is_file():
        return _open_gguf(str(source), path)
    if path.is_dir():
        return _open_folder(str(source), path)
    if path.exists():
        raise BadInput(
            f"{path} is a file; expected a Hugging Face folder, a .gguf file or a hub id"
        )
    if _looks_like_hub_id(str(source)):
        return _open_hub(str(source), revision)
    raise BadInput(
        f"no such file or folder: {path}; expected a Hugging Face folder, a .gguf file or a hub "
        "id such as HuggingFaceTB/SmolLM2-135M-Instruct"
    )


def read_spec(source: str | Path, *, revision: str | None = None) -> DecoderSpec:
    """Read only what a source's decoder looks like: no weights, and of a hub id one small file."""
    path = Path(source)
    if path.suffix == ".gguf" and path.is_file():
        return DecoderSpec.from_hf(GgufFile(path).config())
    if not path.exists() and _looks_like_hub_id(str(source)):
        path = _fetch(str(source), revision, ["config.json"])
    if not path.is_dir():
        return open_checkpoint(source, revision=revision).spec  # which says what is wrong
    return DecoderSpec.from_hf(_read_config(path / "config.json"))


def _looks_like_hub_id(source: str) -> bool:
    parts = source.split("/")
    return len(parts) == 2 and all(parts) and not source.startswith((".", "/", "~"))


def _open_gguf(name: str, path: Path) -> Checkpoint:
    file = GgufFile(path)
    config = file.config()
    file.check_tensors()

    def read(tensor: str) -> "torch.Tensor":
        import torch

        return torch.from_numpy(file.read(tensor))

    spec = DecoderSpec.from_hf(config)
    checkpoint = Checkpoint(
        name,
        file.path,
        config,
        spec,
        file.shapes,
        read,
        file.paths,
        license=file.metadata.text("general.license"),
    )
    checkpoint.check()
    return checkpoint


def _open_hub(name: str, revision: str | None) -> Checkpoint:
    folder = _fetch(name, revision, _HUB_FILES)
    return _open_folder(name, folder, revision=folder.name)


def _fetch(name: str, revision: str | None, files: list[str]) -> Path:
    """Download what is not in the local cache; returns the folder of the snapshot."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError:
        raise MissingPackage(
            f"{name} is no local folder, and fetching it needs huggingface_hub: "
            "pip install 'edgelm[export]'"
        ) from None
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except HFValidationError as error:
        raise BadInput(f"{name!r} is neither a file or folder nor a hub id: {error}") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        raise BadInput(
            f"cannot fetch {name}{at} from the Hugging Face hub ({type(error).__name__}), and it "
            "is not in the local cache; check the name and the connection (gated models need "
            "`hf auth login`), or download it elsewhere and pass the folder"
        ) from None


def _open_folder(name: str, folder: Path, *, revision: str | None = None) -> Checkpoint:
    config = _read_config(folder / "config.json")
    spec = DecoderSpec.from_hf(config)
    files = _weight_files(folder)
    where: dict[str, Path] = {}
    shapes: Shapes = {}
    for file in files:
        for tensor, shape in _safetensors_shapes(file).items():
            where[tensor] = file
            shapes[tensor] = shape

    def read(tensor: str) -> "torch.Tensor":
        from safetensors import safe_open

        with safe_open(where[tensor], framework="pt") as opened:
            return opened.get_tensor(tensor)  # type: ignore[no-any-return]

    if spec.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    checkpoint = Checkpoint(
        name, folder, config, spec, shapes, read, tuple(files), revision, _license(folder)
    )
    checkpoint.check()
    return checkpoint


def _license(folder: Path) -> str | None:
    """The `license:` line of a model card's front matter."""
    try:
        card = (folder / "README.md").read_text()
    except (OSError, UnicodeDecodeError):
        return None
    front = card.split("---")[1] if card.startswith("---") else ""
    lines = (line.partition(":") for line in front.splitlines())
    return next((value.strip() for key, _, value in lines if key == "license"), None)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise BadCheckpoint(
            f"{path.parent} has no config.json; expected a Hugging Face model folder"
        ) from None
    except ValueError as error:
        raise BadCheckpoint(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise BadCheckpoint(f"{path} holds {type(config).__name__}, expected an object")
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise BadCheckpoint(
            f"{path.parent} is already quantized ({method}); start from the unquantized model"
        )
    return config


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadCheckpoint(f"{index} is damaged; download it again") from None
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise BadCheckpoint(
                f"{folder} lacks {len(missing)} of {len(names)} shards, first {missing[0]!r}; "
                "download it again"
            )
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = [path.name for pattern in _PICKLED for path in folder.glob(pattern)]
        if pickled:
            raise BadCheckpoint(
                f"{folder} has only pickled weights ({pickled[0]}), which can run any code when "
                "loaded; convert them to safetensors first (transformers: "
                "model.save_pretrained(folder))"
            )
        raise BadCheckpoint(f"{folder} holds no *.safetensors file")
    return files


def _safetensors_shapes(path: Path) -> Shapes:
    """Shapes from the header alone (format: 8-byte length, JSON, data), without torch."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size - 8:
                raise ValueError("header longer than the file")
            header = json.loads(file.read(length))
    except (struct.error, ValueError) as error:
        raise BadCheckpoint(
            f"{path} is truncated or no safetensors file ({error}); download it again"
        ) from None
    header.pop("__metadata__", None)
    end = 8 + length + max(_ends(header.values()), default=0)
    if size < end:
        raise BadCheckpoint(f"{path} is truncated: {size} bytes of {end}; download it again")
    return {name: tuple(entry["shape"]) for name, entry in header.items()}


def _ends(entries: Iterable[dict[str, Any]]) -> Iterable[int]:
    return (entry["data_offsets"][1] for entry in entries)
