"""What peers make of a model with their own programs, each in the peers' environment."""

import shutil
import subprocess
from pathlib import Path

from edgelm.bench.peers.install import SHARED, Environment, converter, interpreter
from edgelm.errors import EdgeLMError

FILE_TYPES = {"Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15}  # llama.h, enum llama_ftype
# Layers that only draft (multi-token prediction) are left out: a student does not have those that
# its configuration counts, and no plain decoding uses them. `--no-mtp` is refused for most models.
_CONVERT = """\
import runpy, sys
folder, vocabulary, *arguments = sys.argv[1:]
sys.path[:0] = [folder, folder + "/gguf-py"]
import conversion
from conversion import base
base.ModelBase.no_mtp = True
if vocabulary == "no vocabulary":
    find = conversion.get_model_class
    def set_vocab(model):
        # Only some classes write the number of tokens themselves.
        model._set_vocab_none()
        model.gguf_writer.add_vocab_size(model.hparams["vocab_size"])
    def without_vocabulary(*names, **options):
        found = find(*names, **options)
        found.set_vocab = set_vocab
        return found
    conversion.get_model_class = without_vocabulary
sys.argv = ["convert_hf_to_gguf.py", *arguments]
runpy.run_path(folder + "/convert_hf_to_gguf.py", run_name="__main__")
"""
_QUANTIZE = """\
import ctypes, sys, llama_cpp
settings = llama_cpp.llama_model_quantize_default_params()
settings.ftype = int(sys.argv[3])
settings.allow_requantize = True
settings.pure = "pure" in sys.argv[4:]
status = llama_cpp.llama_model_quantize(
    sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(settings))
sys.exit(status)
"""


def run_peer(
    *arguments: str, environment: Environment = SHARED, program: str | None = None
) -> None:
    """Run a peer's Python; `program` names what it does in the message of an error.

    Raises:
        EdgeLMError: it failed; the message has the last lines of its output.
    """
    command = [str(interpreter(environment)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        program = program or " ".join(arguments[:3])[:80]
        raise EdgeLMError(f"{program} failed:\n{last}")


def convert_to_gguf(source: Path, target: Path, kind: str, *, vocabulary: bool = True) -> None:
    """Write a Hugging Face folder as a GGUF file with llama.cpp's converter.

    Args:
        source: the folder.
        target: the file.
        kind: how weights are stored: f16 or bf16.
        vocabulary: with the tokenizer's, which the converter has to know.
    """
    words = "vocabulary" if vocabulary else "no vocabulary"
    arguments = [str(source), "--outfile", str(target), "--outtype", kind]
    code = ["-c", _CONVERT, str(converter().parent), words]
    run_peer(*code, *arguments, program=f"llama.cpp's converter on {source}")


def quantize_gguf(source: Path, target: Path, kind: str, *, pure: bool = False) -> None:
    """Quantize a GGUF file with llama.cpp; `pure`: every matrix in `kind`, also the output."""
    arguments = [str(source), str(target), str(FILE_TYPES[kind]), *(["pure"] if pure else [])]
    run_peer("-c", _QUANTIZE, *arguments, program=f"llama.cpp's quantizer to {kind}")


def build_genai(source: Path, target: Path) -> None:
    """Write a folder of onnxruntime-genai's builder: int4 in blocks of 32, for a CPU."""
    cache = target.with_name("genai-cache")
    try:
        run_peer(
            *("-m", "onnxruntime_genai.models.builder"),
            *("-i", str(source), "-o", str(target), "-c", str(cache)),
            *("-p", "int4", "-e", "cpu", "--extra_options", "int4_block_size=32"),
        )
    finally:
        shutil.rmtree(cache, ignore_errors=True)
