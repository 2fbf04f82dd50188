"""Finalizing a bundle from somebody else: nothing outside it is touched, nothing untrusted runs."""

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import edgelm
from edgelm.bundle import (
    CompiledEngine,
    FileEntry,
    Manifest,
    encode_manifest,
    read_manifest,
    verify,
    write_manifest,
)
from edgelm.bundle.manifest_file import contents_sha256
from edgelm.errors import BadBundle, BadInput, DoesNotFit, EdgeLMError
from edgelm.export.cli import main
from edgelm.files.hashing import file_sha256
from edgelm.runtime.engines import finalize, unchanged_bundle
from edgelm.runtime.engines.open import engine_version, open_session
from edgelm.runtime.engines.trust import trust
from tests.folders import contents
from tests.runtime.engines.test_finalize import VERSION, bundle, orin, pending
from tests.runtime.fake_gpu import TITLE, FakeCuda

__all__ = ["bundle", "orin", "pending"]  # fixtures


def claim(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest, as somebody who computes its own hash too."""
    path = folder / "bundle.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps({**values, "sha256": contents_sha256(values)}))


def engine_of(file: str, **changes: Any) -> dict[str, Any]:
    engine = CompiledEngine(file, "tensorrt", VERSION, (87,), "", 2, 1.0, "elsewhere")
    values: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(engine, **changes))
    return values


@pytest.mark.parametrize("form", ["dots", "absolute", "through-engines"])
def test_a_stranger_s_bundle_removes_no_file(bundle: Path, orin: FakeCuda, form: str) -> None:
    secret = bundle.parent / "id_rsa"
    secret.write_text("the only copy")
    name = {"dots": "../id_rsa", "absolute": str(secret), "through-engines": "engines/../../id_rsa"}
    claim(bundle, lambda values: values.update(engines=[engine_of(name[form])]))
    before = contents(bundle)
    with pytest.raises(BadBundle, match="do not use this bundle"):
        finalize.finalize(bundle)
    with pytest.raises(BadBundle, match="do not use this bundle"):
        edgelm.load(bundle, check_hashes=False)
    assert main(["--trust", str(bundle)]) == 2
    assert secret.read_text() == "the only copy"
    assert contents(bundle) == before


def test_files_of_the_user_stay(bundle: Path, orin: FakeCuda) -> None:
    """In `engines` too: only what export itself names so is removed."""
    (bundle / "engines" / "mine").mkdir(parents=True)
    kept = {"engines/my.engine": b"a", "engines/notes.txt": b"b", "engines/mine/x.engine": b"c"}
    for name, data in kept.items():
        (bundle / name).write_bytes(data)
    finalize.finalize(bundle)
    finalize.finalize(bundle)
    assert contents(bundle).items() >= kept.items()


@pytest.mark.parametrize("kind", ["link", "dangling", "file"])
def test_engines_that_is_no_folder_of_the_bundle(bundle: Path, orin: FakeCuda, kind: str) -> None:
    other = bundle.parent / "other"
    other.mkdir()
    foreign = other / "sm87-tensorrt10.16-0badbeef.engine"
    foreign.write_bytes(b"of another bundle")
    if kind == "file":
        (bundle / "engines").write_text("")
    else:
        (bundle / "engines").symlink_to(other if kind == "link" else other / "none")
    with pytest.raises(BadBundle, match="is a link or a file, expected a folder"):
        finalize.finalize(bundle)
    assert [*other.iterdir()] == [foreign]
    assert read_manifest(bundle).pending


def test_a_link_in_the_place_of_a_replaced_engine(bundle: Path, orin: FakeCuda) -> None:
    """The link goes; what it leads to stays."""
    secret = bundle.parent / "secret"
    secret.write_text("the only copy")
    (bundle / "engines").mkdir()
    (bundle / "engines/old.engine").symlink_to(secret)
    claim(bundle, lambda values: values.update(engines=[engine_of("engines/old.engine")]))
    [engine] = finalize.finalize(bundle).engines
    assert [*(bundle / "engines").iterdir()] == [bundle / engine.file]
    assert secret.read_text() == "the only copy"


def other_gpu(manifest: Manifest, engine: CompiledEngine, folder: Path, sm: int) -> Manifest:
    """The manifest with a first engine, for another GPU."""
    path = folder / f"engines/sm{sm}.engine"
    path.write_bytes(b"native code for another GPU")
    theirs = msgspec.structs.replace(
        engine, file=f"engines/sm{sm}.engine", compute_capabilities=(sm,)
    )
    files = {**manifest.files, theirs.file: FileEntry(path.stat().st_size, file_sha256(path))}
    need = msgspec.structs.replace(manifest.engine, compute_capabilities=())
    return msgspec.structs.replace(
        manifest, engines=(theirs, *manifest.engines), files=files, engine=need
    )


@pytest.fixture
def shared(bundle: Path, orin: FakeCuda) -> Path:
    """A bundle on a shared disk: its first engine is for sm_89, its second for this GPU."""
    manifest = finalize.finalize(bundle)
    write_manifest(bundle, other_gpu(manifest, manifest.engines[0], bundle, 89))
    return bundle


@pytest.mark.parametrize("turned", [False, True], ids=["second", "first"])
def test_the_engine_for_this_gpu_runs(shared: Path, turned: bool) -> None:
    manifest = read_manifest(shared)
    engines = manifest.engines[::-1] if turned else manifest.engines
    write_manifest(shared, msgspec.structs.replace(manifest, engines=engines))
    with edgelm.load(shared) as lm:
        assert lm.generate("The miller", max_tokens=2).tokens


def test_of_two_versions_the_installed_one_runs(bundle: Path, orin: FakeCuda) -> None:
    manifest = finalize.finalize(bundle)
    [engine] = manifest.engines
    older = msgspec.structs.replace(engine, file="engines/older.engine", version="10.3.0")
    (bundle / older.file).write_bytes(b"of another TensorRT")
    files = {**manifest.files, older.file: FileEntry(19, file_sha256(bundle / older.file))}
    both = msgspec.structs.replace(manifest, engines=(older, engine), files=files)
    write_manifest(bundle, both)
    edgelm.load(bundle).close()
    assert engine_version(both) == VERSION


def test_finalizing_keeps_the_engines_of_other_gpus(shared: Path) -> None:
    theirs, ours = read_manifest(shared).engines
    again = finalize.finalize(shared).engines
    assert [engine.compute_capabilities for engine in again] == [(87,), (89,)]
    assert again[1] == theirs
    assert (shared / theirs.file).read_bytes() == b"native code for another GPU"
    assert theirs.file in read_manifest(shared).files
    assert ours.compute_capabilities == (87,)


def test_an_engine_for_another_gpu_alone(
    shared: Path, orin: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    orin.sm = 72
    message = r"for sm_89, this GPU is sm_72; .*for sm_87, this GPU is sm_72; compile it here"
    with pytest.raises(BadBundle, match=message):
        edgelm.load(shared)
    # Where several machines share a bundle, what another one compiled meanwhile is not enough.
    done = finalize.finalize(shared, force=False)
    assert [engine.compute_capabilities for engine in done.engines] == [(72,), (89,), (87,)]
    edgelm.load(shared).close()


def test_an_engine_of_another_graph_does_not_run(bundle: Path, orin: FakeCuda) -> None:
    finalize.finalize(bundle)
    claim(bundle, lambda values: values["engines"][0].update(graph_sha256="00"))
    with pytest.raises(BadBundle, match="compiled from another graph than the bundle's; compile"):
        edgelm.load(bundle)


def test_a_trusted_hash_that_is_only_claimed(
    bundle: Path, orin: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without hashes too, it is the bytes that are trusted."""
    [engine] = finalize.finalize(bundle).engines
    ran: list[bytes] = []
    library = sys.modules["tensorrt"]
    runtime = library.Runtime

    def spy(logger: Any) -> Any:
        made = runtime(logger)
        inner = made.deserialize_cuda_engine

        def deserialize(data: Any) -> Any:
            ran.append(bytes(data))
            return inner(data)

        made.deserialize_cuda_engine = deserialize
        return made

    monkeypatch.setattr(library, "Runtime", spy)
    (bundle / engine.file).write_bytes(TITLE + b"/evil")
    with pytest.raises(BadBundle, match="not an engine that this machine compiled or trusts"):
        edgelm.load(bundle, check_hashes=False)
    with pytest.raises(BadBundle, match="not an engine that this machine compiled or trusts"):
        open_session(bundle, read_manifest(bundle), capacity=read_manifest(bundle).limits.context)
    assert not ran


def test_an_engine_that_is_swapped_after_its_hash_was_checked(
    bundle: Path, orin: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    [engine] = finalize.finalize(bundle).engines

    def then_swap(*given: Any, **named: Any) -> None:
        verify(*given, **named)
        (bundle / "new").write_bytes(TITLE + b"/evil")
        (bundle / "new").replace(bundle / engine.file)

    monkeypatch.setattr(unchanged_bundle, "verify", then_swap)
    with pytest.raises(BadBundle):
        edgelm.load(bundle)


@pytest.mark.parametrize("command", ["--trust", "--verify"])
def test_engines_without_an_entry_cannot_be_trusted(
    bundle: Path, orin: FakeCuda, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    [engine] = finalize.finalize(bundle).engines
    claim(bundle, lambda values: values["files"].pop(engine.file))
    assert main([command, str(bundle)]) == 2
    assert f"does not list {engine.file}" in capsys.readouterr().err


def test_a_graph_cannot_be_trusted_as_an_engine(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    claim(bundle, lambda values: values.update(engines=[engine_of("model.onnx")]))
    assert main(["--trust", str(bundle)]) == 2
    assert "not have the form engines/NAME.engine" in capsys.readouterr().err


def _refuse(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(target: Path, content: Any) -> None:
        raise OSError(code, os.strerror(code), str(target))

    for module in (
        "edgelm.runtime.engines.finalize",
        "edgelm.runtime.engines.tensorrt.engine_file",
    ):
        monkeypatch.setattr(f"{module}.replace_file", fail)


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (errno.ENOSPC, DoesNotFit, "the disk is full: .* cannot be written; free some space"),
        (errno.EROFS, BadInput, "Read-only file system"),
        (errno.EACCES, BadInput, "Permission denied"),
    ],
)
def test_what_the_system_refuses(
    bundle: Path,
    orin: FakeCuda,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    error: type[EdgeLMError],
    message: str,
) -> None:
    before = contents(bundle)
    with monkeypatch.context() as patch:
        _refuse(patch, code)
        with pytest.raises(error, match=message):
            finalize.finalize(bundle)
    assert contents(bundle) == before
    assert not finalize.finalize(bundle).pending


def test_a_full_disk_when_the_manifest_is_written(
    bundle: Path, orin: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(bundle)
    with monkeypatch.context() as patch:

        def fail(target: Path, content: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

        patch.setattr(finalize, "replace_file", fail)
        with pytest.raises(DoesNotFit, match=r"the disk is full: .*bundle\.json"):
            finalize.finalize(bundle)
    assert contents(bundle) == before


def test_the_manifest_keeps_its_hash(bundle: Path, orin: FakeCuda) -> None:
    manifest = finalize.finalize(bundle)
    text = (bundle / "bundle.json").read_bytes()
    assert text == encode_manifest(manifest)
    changed = text.replace(b'"build_seconds": 12.5', b'"build_seconds": 12.6')
    (bundle / "bundle.json").write_bytes(changed)
    with pytest.raises(BadBundle, match="do not match its own SHA-256"):
        edgelm.load(bundle)


def test_a_list_of_trusted_engines_that_cannot_be_read(
    bundle: Path, orin: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    finalize.finalize(bundle)
    (tmp_path / "state/edgelm/trusted-engines.txt").mkdir(parents=True)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for attempt in (lambda: edgelm.load(bundle), lambda: finalize.finalize(bundle)):
        with pytest.raises(BadInput, match=r"the list of trusted engines, .*, cannot be used"):
            attempt()


def test_a_copy_of_a_trusted_engine_is_trusted(bundle: Path, orin: FakeCuda) -> None:
    """By its bytes, wherever it lies."""
    finalize.finalize(bundle)
    moved = shutil.copytree(bundle, bundle.parent / "moved")
    edgelm.load(moved).close()
    trust(file_sha256(moved / read_manifest(moved).engines[0].file))
