"""Setting up the peers' environments: what pip is called with, and a fake Python that runs it."""

import io
import tarfile
from pathlib import Path

import pytest

from edgelm.bench.peers import install as peers
from edgelm.bench.peers.install import OPTIMUM, SHARED, converter, set_up
from edgelm.errors import MissingPackage
from tests.bench.fake_peers import make_peers
from tests.folders import contents

PINS = SHARED.pins


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "peers"
    monkeypatch.setenv("EDGELM_PEERS", str(folder))
    return folder


def archive(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = len(name)
            tar.addfile(entry, io.BytesIO(name.encode()))
    return path


@pytest.mark.parametrize(
    ("flags", "added"), [("avx2 amx_tile amx_int8", True), ("avx2 avx512_vnni", False)]
)
def test_llama_cpp_is_compiled_without_amx(
    flags: str, added: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags\t: fpu {flags}\n")
    monkeypatch.setenv("CFLAGS", "-O2")
    monkeypatch.delenv("CXXFLAGS", raising=False)
    without = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    expected = {"CFLAGS": f"-O2 {without}", "CXXFLAGS": without} if added else {}
    assert peers._compiler_flags(cpuinfo) == expected
    assert peers._compiler_flags(tmp_path / "none") == {}


def test_every_peer_is_pinned() -> None:
    names = {line.partition("==")[0] for line in PINS}
    assert {"llama-cpp-python", "onnxruntime-genai", "transformers"} <= names
    assert {"optimum-onnx", "onnxruntime", "torch"} <= {
        line.partition("==")[0] for line in OPTIMUM.pins
    }


def test_pip_gets_the_pins_and_llama_cpp_is_built_from_its_archive(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # This Python installs everything at once: what it is asked for is in the log.
    make_peers(folder, f'echo "$@" >> {folder}/log')
    (folder / "sdist").mkdir()
    inner = "llama_cpp_python-1.0/vendor/llama.cpp/"
    made = archive(
        folder / "sdist" / "llama_cpp_python-1.0.tar.gz",
        f"{inner}convert_hf_to_gguf.py",
        f"{inner}gguf-py/gguf/__init__.py",
        f"{inner}src/llama.cpp",
    )
    set_up([SHARED])
    log = (folder / "log").read_text().splitlines()
    others = [pin for pin in PINS if not pin.startswith("llama-cpp-python")]
    assert log[0] == f"-m pip install -q {' '.join(others)}"
    assert f"-m pip install -q {made}" in log
    assert [line for line in log if line.startswith("-m pip download")]
    kept = contents(folder / "llama.cpp")
    assert set(kept) == {"convert_hf_to_gguf.py", "gguf-py/gguf/__init__.py"}
    assert converter().is_file()
    assert "compiling llama.cpp" in capfd.readouterr().err


def test_what_is_there_is_not_built_again(folder: Path) -> None:
    make_peers(folder, f'echo "$@" >> {folder}/log')
    converter().parent.mkdir()
    converter().write_text("")
    set_up([SHARED])
    assert "download" not in (folder / "log").read_text()


def test_optimum_has_an_environment_of_its_own(folder: Path) -> None:
    own = folder / "optimum"
    make_peers(own, f'echo "$@" >> {folder}/log')
    set_up([OPTIMUM])
    assert (folder / "log").read_text().splitlines() == [
        f"-m pip install -q {' '.join(OPTIMUM.pins)}",
        "-c import optimum.onnxruntime",
    ]
    assert not (folder / "bin").exists()


def test_pip_s_failure_is_named(folder: Path) -> None:
    make_peers(folder, "exit 7")
    with pytest.raises(MissingPackage, match=r"-m pip install -q .* failed with exit code 7"):
        set_up()


def test_an_archive_without_the_converter(folder: Path, tmp_path: Path) -> None:
    made = archive(tmp_path / "other.tar.gz", "llama_cpp_python-1.0/README.md")
    with pytest.raises(MissingPackage, match=r"other\.tar\.gz has no convert_hf_to_gguf\.py"):
        peers._extract_converter(made, folder / "llama.cpp")


def test_an_archive_cannot_write_outside(folder: Path, tmp_path: Path) -> None:
    name = "llama_cpp_python-1.0/vendor/llama.cpp/gguf-py/../../../escaped"
    made = archive(tmp_path / "evil.tar.gz", name)
    with pytest.raises(tarfile.OutsideDestinationError):
        peers._extract_converter(made, folder / "llama.cpp")
    assert not (tmp_path / "escaped").exists()
