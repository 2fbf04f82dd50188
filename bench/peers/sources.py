"""The same source model in the form that each peer reads, made once and cached.

Everything is derived from the one checkpoint whose hash the bundle records: a Hugging Face folder
for transformers, onnxruntime-genai's builder and optimum's exporter, GGUF files from llama.cpp's
own quantizer.
"""

import json
import logging
import platform
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from edgelm.bench.peers.conversions import build_genai, convert_to_gguf, quantize_gguf, run_peer
from edgelm.bench.peers.install import OPTIMUM
from edgelm.bench.peers.older_config import write_older_config
from edgelm.bundle import Manifest
from edgelm.checkpoint.gguf.reader import GgufFile
from edgelm.checkpoint.gguf.tokenizer import write_for_transformers
from edgelm.checkpoint.source import Checkpoint, open_checkpoint
from edgelm.errors import BadInput

log = logging.getLogger(__name__)


class Source(NamedTuple):
    """The model that all are compared with, and its hash."""

    checkpoint: Checkpoint
    sha256: str


def find_source(manifests: Sequence[Manifest], given: str | None) -> Source:
    """Open the model that bundles have in common.

    That is the source they were exported from; or, for students and their teacher side by side,
    the teacher. A student alone is compared with its teacher if `given` names that.

    Raises:
        BadInput: they have none in common, it is not where a manifest says, or it is another model.
    """
    sources = {manifest.lineage.sha256 for manifest in manifests}
    origins = {origin(manifest) for manifest in manifests}
    common = (sources if len(sources) == 1 else set()) | (origins if len(origins) == 1 else set())
    if not common:
        raise BadInput(
            "the bundles come from different sources, and not from students of one teacher; "
            "measure them one at a time"
        )
    wanted = sources if len(sources) == 1 else origins
    lineage = next((one.lineage for one in manifests if one.lineage.sha256 in wanted), None)
    if given is None and lineage is None:
        raise BadInput("the bundles are students of one teacher; give it with --source")
    name = given or (lineage and (lineage.path or lineage.source)) or ""
    revision = lineage.revision if lineage and given is None else None
    try:
        checkpoint = open_checkpoint(name, revision=revision)
    except BadInput as error:
        raise BadInput(f"cannot open the bundle's source: {error}; give it with --source") from None
    sha256 = checkpoint.sha256()
    if sha256 not in common:
        raise BadInput(
            f"{name} is not the model this bundle was made from (its SHA-256 differs from the "
            "manifest's lineage); give the right one with --source"
        )
    return Source(checkpoint, sha256)


def origin(manifest: Manifest) -> str:
    """Hash of the model that a bundle goes back to: a student's teacher, else the source."""
    lineage = manifest.lineage
    return lineage.compress.teacher_sha256 if lineage.compress else lineage.sha256


class Sources:
    """Derived files of one checkpoint, in a folder named for its hash."""

    def __init__(self, source: Source, cache: Path) -> None:
        self.checkpoint = source.checkpoint
        self.folder = cache / source.sha256[:16]
        self.folder.mkdir(parents=True, exist_ok=True)

    def huggingface(self) -> Path:
        """A Hugging Face folder."""
        if not self.checkpoint.is_gguf:
            return self.checkpoint.path
        return self._made("huggingface", self._write_huggingface)

    def gguf(self, kind: str) -> Path:
        """A GGUF file: `source` (unquantized, or as it came), `Q4_0` or `Q4_K_M`."""
        if kind == "source":
            path = self.checkpoint.path
            if self.checkpoint.is_gguf:
                return path
            return self._made("source.gguf", lambda to: convert_to_gguf(path, to, "f16"))
        source = self.gguf("source")
        return self._made(f"{kind}.gguf", lambda to: quantize_gguf(source, to, kind))

    def genai(self) -> Path:
        """A model folder of onnxruntime-genai's builder, int4 in blocks of 32."""
        return self._made("genai-int4", lambda to: build_genai(self.huggingface(), to))

    def optimum(self) -> Path:
        """A folder of optimum's exporter: fp32, with a key-value cache."""
        return self._made("optimum-fp32", self._export_optimum)

    def optimum_int8(self) -> Path:
        """The same, quantized as optimum's documentation recommends: dynamic int8."""
        return self._made("optimum-int8", self._quantize_optimum)

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        """Make a file or folder unless it is there; a partial one never remains."""
        target = self.folder / name
        if target.exists():
            return target
        log.info("preparing %s", name)
        staging = self.folder / f"partial-{name}"
        _remove(staging)
        try:
            make(staging)
            staging.rename(target)
        finally:
            _remove(staging)
        return target

    def _write_huggingface(self, folder: Path) -> None:
        from safetensors.torch import save_file
        from transformers import AutoConfig, AutoModelForCausalLM

        checkpoint = self.checkpoint
        folder.mkdir()
        tensors = {name: checkpoint.tensor(name).contiguous() for name in checkpoint.shapes}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        values = {key: v for key, v in checkpoint.config.items() if key != "model_type"}
        config = AutoConfig.for_model(checkpoint.spec.family, **values)
        kind: Any = AutoModelForCausalLM._model_mapping[type(config)]
        config.architectures = [kind.__name__]
        config.dtype = "float32"
        config.save_pretrained(folder)
        write_for_transformers(GgufFile(checkpoint.path).metadata, folder)
        ids = {key: values[key] for key in ("bos_token_id", "eos_token_id") if key in values}
        (folder / "generation_config.json").write_text(json.dumps(ids))

    def _export_optimum(self, folder: Path) -> None:
        with TemporaryDirectory(dir=self.folder, prefix="partial-") as scratch:
            source = write_older_config(self.huggingface(), Path(scratch))
            _optimum(
                *("export", "onnx", "--model", str(source)),
                *("--task", "text-generation-with-past", str(folder)),
            )

    def _quantize_optimum(self, folder: Path) -> None:
        source = self.optimum()
        kind = f"--{optimum_instructions()}"
        _optimum("onnxruntime", "quantize", "--onnx_model", str(source), "-o", str(folder), kind)
        for path in source.glob("*.json"):  # the configuration, which it does not copy
            if not (folder / path.name).exists():
                shutil.copy2(path, folder)


def optimum_instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Which of optimum's quantization presets is for this CPU."""
    if platform.machine() in ("aarch64", "arm64"):
        return "arm64"
    flags = cpuinfo.read_text() if cpuinfo.is_file() else ""
    for flag, preset in (("avx512_vnni", "avx512_vnni"), ("avx512f", "avx512")):
        if flag in flags:
            return preset
    return "avx2"


def _optimum(*arguments: str) -> None:
    run_peer("-m", "optimum.commands.optimum_cli", *arguments, environment=OPTIMUM)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
