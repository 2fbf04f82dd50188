"""The peers' own environment: one command sets it up, measurements find it.

Peers pin what they need (another onnxruntime, another torch) and are never installed beside
edgelm. llama.cpp is compiled for this machine from llama-cpp-python's source archive, which takes
some minutes; its checkpoint converter is kept from there too. On CPUs with AMX it is compiled
without: the AMX code of 0.3.36 dies of prompts of 512 tokens.
"""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

from edgelm.errors import MissingPackage

_REQUIREMENTS = Path(__file__).with_name("peers.txt")
_LLAMA = "llama-cpp-python"
_WITHOUT_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"


def peers_folder() -> Path:
    """Where the environment lies: `EDGELM_PEERS`, or below the user's cache."""
    given = os.environ.get("EDGELM_PEERS")
    return Path(given) if given else Path.home() / ".cache" / "edgelm" / "peers"


def interpreter() -> Path:
    """The environment's Python."""
    return peers_folder() / "bin" / "python"


def converter() -> Path:
    """llama.cpp's converter for Hugging Face folders."""
    return peers_folder() / "llama.cpp" / "convert_hf_to_gguf.py"


def missing_reason(module: str) -> str | None:
    """Why a peer cannot run, or None if it can."""
    python = interpreter()
    if not python.is_file():
        return f"not installed: no environment at {peers_folder()}; edge-bench --setup-peers"
    done = subprocess.run([python, "-c", f"import {module}"], capture_output=True, text=True)
    if done.returncode == 0:
        return None
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"not installed: {last}; edge-bench --setup-peers"


def set_up() -> None:
    """Create or complete the environment; finished parts are not done again."""
    folder = peers_folder()
    if not interpreter().is_file():
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([str(interpreter()), "-m", "pip", "install", "-q", "--upgrade", "pip"])
    pip = [str(interpreter()), "-m", "pip"]
    wanted = [line for line in _REQUIREMENTS.read_text().split("\n") if "==" in line]
    llama = next(line for line in wanted if line.startswith(_LLAMA))
    others = [line for line in wanted if line != llama]
    print(f"installing {len(others)} packages into {folder}", file=sys.stderr, flush=True)
    _run([*pip, "install", "-q", *others])
    if missing_reason("llama_cpp") or not converter().is_file():
        print("compiling llama.cpp for this machine (some minutes)", file=sys.stderr, flush=True)
        archive = _download(pip, llama, folder / "sdist")
        _run([*pip, "install", "-q", str(archive)], **_compiler_flags())
        _extract_converter(archive, converter().parent)
    for module in ("llama_cpp", "onnxruntime_genai", "transformers"):
        if reason := missing_reason(module):
            raise MissingPackage(f"{module} did not install: {reason}")


def _download(pip: list[str], requirement: str, folder: Path) -> Path:
    name = requirement.replace("-", "_").replace("==", "-") + ".tar.gz"
    if not (folder / name).is_file():
        options = ["--no-deps", "--no-binary", ":all:", "-d", str(folder)]
        _run([*pip, "download", "-q", *options, requirement])
    found = sorted(folder.glob("llama[-_]cpp[-_]python-*.tar.gz"))
    if not found:
        raise MissingPackage(f"pip downloaded no source archive of {requirement} into {folder}")
    return found[-1]


def _extract_converter(archive: Path, folder: Path) -> None:
    """The converter script with the packages beside it that it imports."""
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            _, _, inner = member.name.partition("vendor/llama.cpp/")
            if inner.startswith(("convert_hf_to_gguf.py", "gguf-py/", "conversion/")):
                member.name = inner
                tar.extract(member, folder, filter="data")
    if not converter().is_file():
        raise MissingPackage(f"{archive.name} holds no convert_hf_to_gguf.py; use another version")


def _compiler_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """Environment variables for a compiler that otherwise takes all that the CPU has."""
    if not cpuinfo.is_file() or "amx_int8" not in cpuinfo.read_text():
        return {}
    kinds = ("CFLAGS", "CXXFLAGS")
    return {kind: f"{os.environ.get(kind, '')} {_WITHOUT_AMX}".strip() for kind in kinds}


def _run(command: list[str], **environment: str) -> None:
    done = subprocess.run(command, env={**os.environ, **environment})
    if done.returncode:
        raise MissingPackage(
            f"{' '.join(command[:6])} … failed with exit code {done.returncode}; its messages "
            "are above"
        )
