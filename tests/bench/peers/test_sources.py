"""The source model for each peer: found, checked, converted once."""

import json
from pathlib import Path

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgelm.bench.peers.older_config import write_older_config
from edgelm.bench.peers.sources import Source, Sources, find_source, optimum_instructions
from edgelm.bundle import Manifest, read_manifest
from edgelm.checkpoint.source import Checkpoint, open_checkpoint
from edgelm.checkpoint.student import StudentRecord
from edgelm.errors import BadInput, EdgeLMError
from edgelm.export.source.reference import Reference
from tests.bench.fake_peers import make_peers
from tests.checkpoints.gguf_files import write_gguf
from tests.checkpoints.models import save_tiny, tiny_model
from tests.checkpoints.tiny_chat import VOCAB, tiny_tokenizer
from tests.folders import contents

TOKENS = torch.arange(5, 45)[None]
HASH = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_model("llama", vocab_size=VOCAB)
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return write_gguf(model, path, "F16", tokenizer=tiny_tokenizer())


@pytest.fixture
def manifest(bundle: Path, source: Path) -> Manifest:
    """The bundle's, with the whole path of its source."""
    manifest = read_manifest(bundle)
    lineage = msgspec.structs.replace(manifest.lineage, source=str(source))
    return msgspec.structs.replace(manifest, lineage=lineage)


def logits(checkpoint: Checkpoint) -> torch.Tensor:
    reference = Reference(checkpoint)
    return reference.logits(reference.hidden_states(TOKENS)[0], reference.head())


def test_the_source_is_where_the_manifest_says(manifest: Manifest, source: Path) -> None:
    assert find_source([manifest], None).checkpoint.path == source


def test_the_source_is_where_the_user_says(bundle: Path, source: Path) -> None:
    assert find_source([read_manifest(bundle)], str(source)).checkpoint.path == source


def test_another_model_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "other")
    message = f"{tmp_path}/other is not the model this bundle was made from .*SHA-256 differs"
    with pytest.raises(BadInput, match=message):
        find_source([manifest], str(tmp_path / "other"))


def student_of(manifest: Manifest, teacher_sha256: str, own: str) -> Manifest:
    record = StudentRecord(
        teacher="teacher",
        teacher_sha256=teacher_sha256,
        teacher_parameters=2,
        parameters=1,
        teacher_shape={},
        shape={},
    )
    lineage = msgspec.structs.replace(
        manifest.lineage, sha256=own, source="student", path=None, compress=record
    )
    return msgspec.structs.replace(manifest, lineage=lineage)


def test_a_student_beside_its_teacher_is_compared_with_the_teacher(
    manifest: Manifest, source: Path
) -> None:
    student = student_of(manifest, manifest.lineage.sha256, "1" * 64)
    for given in (None, str(source)):
        found = find_source([student, manifest], given)
        assert found.checkpoint.path == source
        assert found.sha256 == manifest.lineage.sha256


def test_a_student_alone_has_itself_or_the_teacher_that_is_given(
    manifest: Manifest, source: Path, tmp_path: Path
) -> None:
    student = student_of(manifest, manifest.lineage.sha256, "1" * 64)
    with pytest.raises(BadInput, match=r"cannot open the bundle's source: .*--source"):
        find_source([student], None)
    assert find_source([student], str(source)).checkpoint.path == source


def test_students_of_one_teacher_need_it_named(manifest: Manifest, source: Path) -> None:
    students = [student_of(manifest, manifest.lineage.sha256, number * 64) for number in "12"]
    with pytest.raises(BadInput, match="students of one teacher; give it with --source"):
        find_source(students, None)
    assert find_source(students, str(source)).sha256 == manifest.lineage.sha256


def test_students_of_different_teachers_are_not_compared(manifest: Manifest) -> None:
    students = [student_of(manifest, number * 64, number * 64) for number in "12"]
    with pytest.raises(BadInput, match="different sources, and not from students of one teacher"):
        find_source(students, None)


def test_a_source_that_is_gone(manifest: Manifest, tmp_path: Path) -> None:
    message = f"cannot open the bundle's source: .*{tmp_path}/gone.*give it with --source"
    with pytest.raises(BadInput, match=message):
        find_source([manifest], str(tmp_path / "gone"))


def test_a_folder_is_used_as_it_is(source: Path, tmp_path: Path) -> None:
    assert Sources(Source(open_checkpoint(source), HASH), tmp_path).huggingface() == source


def test_a_gguf_becomes_a_folder_with_the_same_logits(gguf: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(gguf)
    folder = Sources(Source(checkpoint, HASH), tmp_path).huggingface()
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert model.dtype == torch.float32
    with torch.inference_mode():
        theirs = model(TOKENS).logits[0]
    torch.testing.assert_close(theirs, logits(checkpoint), rtol=1e-4, atol=1e-4)
    text = "The miller waits."
    expected = tiny_tokenizer().encode(text).ids
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids == expected
    assert model.generation_config.eos_token_id == checkpoint.config["eos_token_id"]


def test_what_was_made_is_kept_by_hash(gguf: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(gguf)
    folder = Sources(Source(checkpoint, HASH), tmp_path).huggingface()
    assert folder == tmp_path / HASH[:16] / "huggingface"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert Sources(Source(checkpoint, HASH), tmp_path).huggingface() == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert Sources(Source(checkpoint, "f" * 64), tmp_path).folder != folder.parent


def test_a_gguf_is_llama_cpp_s_source_as_it_is(gguf: Path, tmp_path: Path) -> None:
    assert Sources(Source(open_checkpoint(gguf), HASH), tmp_path).gguf("source") == gguf


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K_M"])
def test_quantizing_is_the_peer_s_own_work(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    # A stand-in for the peer's Python: `-c CODE source target type`.
    script = 'echo "$5" > "$4" && cat "$3" >> "$4"'
    monkeypatch.setenv("EDGELM_PEERS", str(make_peers(tmp_path / "peers", script)))
    made = Sources(Source(open_checkpoint(gguf), HASH), tmp_path / "cache").gguf(kind)
    assert made.name == f"{kind}.gguf"
    number = {"Q4_0": b"2\n", "Q4_K_M": b"15\n"}[kind]
    assert made.read_bytes() == number + gguf.read_bytes()


def test_a_failed_conversion_tells_why_and_leaves_nothing(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = 'echo half > "$4"; echo one >&2; echo "unknown tensor type" >&2; exit 1'
    monkeypatch.setenv("EDGELM_PEERS", str(make_peers(tmp_path / "peers", script)))
    sources = Sources(Source(open_checkpoint(gguf), HASH), tmp_path / "cache")
    with pytest.raises(EdgeLMError, match=r"failed:\none\nunknown tensor type"):
        sources.gguf("Q4_0")
    assert contents(tmp_path / "cache") == {}


def test_a_half_made_file_of_an_earlier_run_is_not_used(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELM_PEERS", str(make_peers(tmp_path / "peers", 'echo done > "$4"')))
    sources = Sources(Source(open_checkpoint(gguf), HASH), tmp_path / "cache")
    (sources.folder / "partial-Q4_0.gguf").write_text("half")
    assert sources.gguf("Q4_0").read_text() == "done\n"
    assert set(contents(sources.folder)) == {"Q4_0.gguf"}


def test_optimum_gets_a_configuration_that_transformers_4_reads(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A fake Python of optimum's environment: keeps the configuration that it was given.
    script = 'mkdir "$9" && cp "$6/config.json" "$6/model.safetensors" "$9"'
    make_peers(tmp_path / "peers" / "optimum", script)
    monkeypatch.setenv("EDGELM_PEERS", str(tmp_path / "peers"))
    sources = Sources(Source(open_checkpoint(gguf), HASH), tmp_path / "cache")
    folder = sources.optimum()
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert (folder / "model.safetensors").stat().st_size > 1000
    assert {path.name for path in sources.folder.iterdir()} == {"huggingface", "optimum-fp32"}


def test_scaled_rotary_embeddings_in_an_older_configuration(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "older"
    source.mkdir()
    folder.mkdir()
    (source / "tokenizer.json").write_text("{}")
    rope = {"rope_theta": 5e5, "rope_type": "llama3", "factor": 32.0}
    (source / "config.json").write_text(json.dumps({"rope_parameters": rope}))
    config = json.loads((write_older_config(source, folder) / "config.json").read_text())
    assert config == {
        "rope_parameters": rope,
        "rope_theta": 5e5,
        "rope_scaling": {"rope_type": "llama3", "factor": 32.0},
    }
    assert (folder / "tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("flags", "preset"),
    [("avx2 avx512f avx512_vnni", "avx512_vnni"), ("avx2 avx512f", "avx512"), ("avx2", "avx2")],
)
def test_optimum_s_preset_is_for_this_cpu(
    flags: str, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags\t: fpu {flags}\n")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert optimum_instructions(cpuinfo) == preset
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert optimum_instructions(cpuinfo) == "arm64"
