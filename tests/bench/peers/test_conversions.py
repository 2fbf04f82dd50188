"""What peers' own programs are asked for; the programs here are small ones of the same form."""

import json
from pathlib import Path

import pytest

from edgelm.bench.peers.conversions import build_genai, convert_to_gguf, quantize_gguf
from edgelm.errors import EdgeLMError
from tests.bench.fake_peers import make_peers

# Like llama.cpp's: classes are loaded when they are asked for, and the program sets their modes.
_BASE = """\
class ModelBase:
    no_mtp = False

class Writer:
    vocab_size = None

    def add_vocab_size(self, size):
        self.vocab_size = size

class TextModel(ModelBase):
    hparams = {"vocab_size": 320}

    def __init__(self):
        self.gguf_writer = Writer()

    def set_vocab(self):
        raise NotImplementedError

    def _set_vocab_none(self):
        self.vocabulary = "none"
"""
_PACKAGE = """\
def get_model_class(name, mmproj=False):
    from conversion.qwen import Qwen
    return Qwen
"""
_QWEN = """\
from conversion.base import TextModel

class Qwen(TextModel):
    def set_vocab(self):
        self.vocabulary = "its own"
"""
_PROGRAM = """\
import json, sys
from conversion import get_model_class
model = get_model_class("Qwen")()
model.set_vocab()
source, _, target, _, kind = sys.argv[1:]
if source.endswith("strange"):
    sys.exit("unknown tensor")
with open(target, "w") as file:
    json.dump([kind, model.no_mtp, model.vocabulary, model.gguf_writer.vocab_size], file)
"""


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_peers(tmp_path / "peers")
    files = {
        "conversion/__init__.py": _PACKAGE,
        "conversion/base.py": _BASE,
        "conversion/qwen.py": _QWEN,
        "convert_hf_to_gguf.py": _PROGRAM,
    }
    for name, text in files.items():
        path = folder / "llama.cpp" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv("EDGELM_PEERS", str(folder))
    return folder


@pytest.mark.parametrize(
    ("vocabulary", "expected"), [(True, ["its own", None]), (False, ["none", 320])]
)
@pytest.mark.usefixtures("peers")
def test_layers_that_draft_are_left_out(
    tmp_path: Path, vocabulary: bool, expected: list[object]
) -> None:
    # A student of Qwen3.5 has none, although its configuration may count some.
    target = tmp_path / "out.gguf"
    convert_to_gguf(tmp_path / "source", target, "bf16", vocabulary=vocabulary)
    assert json.loads(target.read_text()) == ["bf16", True, *expected]


@pytest.mark.usefixtures("peers")
def test_a_failure_names_the_program(tmp_path: Path) -> None:
    message = r"^llama.cpp's converter on .*/strange failed:\nunknown tensor$"
    with pytest.raises(EdgeLMError, match=message):
        convert_to_gguf(tmp_path / "strange", tmp_path / "out.gguf", "f16")


@pytest.mark.parametrize(("pure", "expected"), [(True, "7 pure\n"), (False, "7 \n")])
def test_every_matrix_in_one_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pure: bool, expected: str
) -> None:
    monkeypatch.setenv("EDGELM_PEERS", str(make_peers(tmp_path / "peers", 'echo "$5 $6" > "$4"')))
    quantize_gguf(tmp_path / "source.gguf", tmp_path / "out.gguf", "Q8_0", pure=pure)
    assert (tmp_path / "out.gguf").read_text() == expected


@pytest.mark.parametrize("code", [0, 1])
def test_the_builder_s_cache_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    script = f'mkdir "$6" "$8"; echo no builder >&2; exit {code}'
    monkeypatch.setenv("EDGELM_PEERS", str(make_peers(tmp_path / "peers", script)))
    if code:
        with pytest.raises(EdgeLMError, match=r"onnxruntime_genai.models.builder.* failed:\nno"):
            build_genai(tmp_path / "source", tmp_path / "genai")
    else:
        build_genai(tmp_path / "source", tmp_path / "genai")
        assert (tmp_path / "genai").is_dir()
    assert not (tmp_path / "genai-cache").exists()
