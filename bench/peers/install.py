"""The peers' own environments: one command installs them, measurements find them.

Peers pin what they need (another onnxruntime, another torch) and are never installed next to
edgelm. optimum-onnx needs a transformers below 4.58 and has an environment of its own.
llama.cpp is compiled for this machine from llama-cpp-python's source archive, which takes some
minutes; its checkpoint converter comes from there too. On CPUs with AMX it is compiled without:
the AMX code of 0.3.36 crashes on prompts of 512 tokens.
"""

import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgelm.errors import MissingPackage

_LLAMA = "llama-cpp-python"
_WITHOUT_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"


@dataclass(frozen=True, slots=True)
class Environment:
    """Packages that are pinned together, in a virtual environment of their own.

    requirements: a file next to this one.
    folder: below `peers_folder()`; empty for that folder itself.
    modules: what must be importable when it is complete.
    """

    requirements: str
    folder: str
    modules: tuple[str, ...]

    @property
    def pins(self) -> list[str]:
        """The requirements, `name==version` each."""
        text = Path(__file__).with_name(self.requirements).read_text()
        return [line for line in text.split("\n") if "==" in line]


SHARED = Environment("peers.txt", "", ("llama_cpp", "onnxruntime_genai", "transformers"))
OPTIMUM = Environment("optimum.txt", "optimum", ("optimum.onnxruntime",))
ENVIRONMENTS = (SHARED, OPTIMUM)


def peers_folder() -> Path:
    """Where the environments are: `EDGELM_PEERS`, or below the user's cache."""
    given = os.environ.get("EDGELM_PEERS")
    return Path(given) if given else Path.home() / ".cache" / "edgelm" / "peers"


def interpreter(environment: Environment = SHARED) -> Path:
    """An environment's Python."""
    return peers_folder() / environment.folder / "bin" / "python"


def converter() -> Path:
    """llama.cpp's converter for Hugging Face folders."""
    return peers_folder() / "llama.cpp" / "convert_hf_to_gguf.py"


def missing_reason(module: str, environment: Environment = SHARED) -> str | None:
    """Why a peer cannot run, or None if it can."""
    python = interpreter(environment)
    if not python.is_file():
        folder = peers_folder() / environment.folder
        return f"not installed: no environment at {folder}; edge-bench --setup-peers"
    done = subprocess.run([python, "-c", f"import {module}"], capture_output=True, text=True)
    if done.returncode == 0:
        return None
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"not installed: {last}; edge-bench --setup-peers"


def set_up(environments: Sequence[Environment] = ENVIRONMENTS) -> None:
    """Create or complete environments; parts that are installed are left as they are.

    Raises:
        MissingPackage: pip or the compiler failed, or a peer cannot be imported afterwards.
    """
    for environment in environments:
        _create(environment)
        pip = [str(interpreter(environment)), "-m", "pip"]
        llama = [pin for pin in environment.pins if pin.startswith(_LLAMA)]
        others = [pin for pin in environment.pins if pin not in llama]
        folder = peers_folder() / environment.folder
        _report(f"installing {len(others)} packages into {folder}")
        _run([*pip, "install", "-q", *others])
        if llama and (missing_reason("llama_cpp") or not converter().is_file()):
            _compile_llama_cpp(pip, llama[0])
        for module in environment.modules:
            if reason := missing_reason(module, environment):
                raise MissingPackage(f"{module} did not install: {reason}")


def _create(environment: Environment) -> None:
    python = interpreter(environment)
    if not python.is_file():
        _run([sys.executable, "-m", "venv", str(python.parents[1])])
        _run([str(python), "-m", "pip", "install", "-q", "--upgrade", "pip"])


def _compile_llama_cpp(pip: list[str], requirement: str) -> None:
    _report("compiling llama.cpp for this machine: about 4 minutes on two cores, without output")
    archive = _download(pip, requirement, peers_folder() / "sdist")
    _run([*pip, "install", "-q", str(archive)], **_compiler_flags())
    _extract_converter(archive, converter().parent)


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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
    """The converter script with the packages next to it that it imports."""
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            _, _, inner = member.name.partition("vendor/llama.cpp/")
            if inner.startswith(("convert_hf_to_gguf.py", "gguf-py/", "conversion/")):
                member.name = inner
                tar.extract(member, folder, filter="data")
    if not converter().is_file():
        raise MissingPackage(f"{archive.name} has no convert_hf_to_gguf.py; use another version")


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
