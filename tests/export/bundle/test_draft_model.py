"""A draft model in a bundle: made, checked, listed, loaded and used."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import edgelm
from edgelm.bundle import MANIFEST, read_manifest, verify
from edgelm.bundle.manifest_file import write_manifest
from edgelm.devices.planner.memory.memory_need import draft_bytes, loaded_bytes
from edgelm.errors import BadBundle, BadInput, DoesNotFit
from edgelm.export.bundle.draft_model import export_draft
from edgelm.export.bundle.sign import sign_bundle
from edgelm.export.cli import main
from edgelm.export.pipeline import export_model
from edgelm.quantize.precision import Int4, Int8
from edgelm.runtime.turns import Turns
from tests.checkpoints.tiny_chat import save_tiny_chat
from tests.signing import new_key

CONTEXT = 256
PROMPT = [40, 41, 42, 43, 60, 70, 80]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat(tmp_path_factory.mktemp("draft") / "source", context=CONTEXT)


@pytest.fixture(scope="module")
def bundle(source: Path) -> Path:
    """A bundle whose draft model is the model itself: all it drafts is right."""
    folder = source.parent / "bundle"
    export_model(source, folder, precision="int8", gate="off")
    export_draft(source, folder)
    return folder


def test_the_manifest_lists_the_draft(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert {"draft/bundle.json", "draft/model.onnx", "draft/tokenizer.json"} <= set(manifest.files)
    verify(bundle, manifest)
    assert read_manifest(bundle / "draft").limits.context == CONTEXT


def test_nothing_is_measured_and_options_reach_the_export(
    source: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    options = "--gate off --precision int4 --group-size 32 --symmetric --method rtn --json"
    command = [str(source), "--draft-for", str(copy), *options.split(), "--layer", "lm_head=int8"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "gate" not in err
    assert "transformers" not in err
    draft = read_manifest(copy / "draft")
    assert json.loads(out) == json.loads((copy / "draft" / MANIFEST).read_text())
    assert (draft.gate, draft.check, draft.source) == (None, None, None)
    layers = [one for group, one in draft.precision.items() if group.startswith("layers.")]
    assert set(layers) == {Int4(group_size=32, symmetric=True)}
    assert isinstance(draft.precision["lm_head"], Int8)
    verify(copy, read_manifest(copy))


def test_a_signature_of_the_bundle_as_it_was_is_removed(
    source: Path, bundle: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    new_key(tmp_path / "key")
    sign_bundle(copy, tmp_path / "key")
    assert "## Signature" in (copy / "README.md").read_text()
    lines: list[str] = []
    export_draft(source, copy, progress=lines.append)
    assert any("its signature was removed" in line for line in lines)
    assert not (copy / "signature.json").exists()
    assert "## Signature" not in (copy / "README.md").read_text()
    verify(copy, read_manifest(copy))


@pytest.mark.usefixtures("drafts_pay")
def test_its_tokens_are_accepted_and_change_nothing(bundle: Path) -> None:
    options: Any = {"max_tokens": 80, "temperature": 0}
    with edgelm.load(bundle, threads=1, speculation="draft") as lm:
        plain = lm.generate(PROMPT, speculation="off", **options)
        lm.session.rewind(0)
        drafted = lm.generate(PROMPT, **options)
    assert drafted.tokens == plain.tokens
    timings = drafted.timings
    assert timings.drafted > 0
    assert timings.accepted > 0.7 * timings.drafted


@pytest.mark.usefixtures("drafts_pay")
def test_two_sequences_have_a_draft_each(bundle: Path) -> None:
    with edgelm.load(bundle, threads=1, sequences=2, speculation="draft") as lm:
        streams = [lm.stream([*PROMPT, n], max_tokens=30, temperature=0) for n in (90, 91)]
        for _ in range(30):
            for stream in streams:
                next(stream)
        for stream in streams:
            stream.close()


@pytest.mark.usefixtures("drafts_pay")
def test_other_generations_run_while_it_reads_a_long_prompt(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with edgelm.load(bundle, threads=1, speculation="draft") as lm:
        draft = lm._sequences.slots[0].draft
        assert draft is not None
        turn, read = Turns.turn, list[int]()

        @contextmanager
        def noted(self: Turns, *cancelled: Any) -> Iterator[None]:
            before = draft.session.length
            with turn(self, *cancelled):
                yield
            read.append(draft.session.length - before)

        monkeypatch.setattr(Turns, "turn", noted)
        prompt = np.random.default_rng(2).integers(40, 90, 200).tolist()
        assert lm.generate(prompt, max_tokens=20, temperature=0).timings.drafted
        assert sum(read) >= 200
        assert max(read) <= draft.session.chunk


def test_off_and_lookup_do_not_load_it(bundle: Path) -> None:
    with (
        edgelm.load(bundle, threads=1, speculation="lookup") as lm,
        pytest.raises(BadInput, match="no draft model"),
    ):
        lm.generate(PROMPT, speculation="draft")


def test_a_damaged_draft_is_found(bundle: Path, tmp_path: Path) -> None:

    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    with (copy / "draft" / "model.onnx.data").open("r+b") as file:
        file.write(b"????")
    with pytest.raises(BadBundle, match=r"draft/model\.onnx\.data"):
        edgelm.load(copy, threads=1)


@pytest.mark.parametrize("name", ["draft/model.onnx.data", "draft/generation_config.json"])
def test_a_file_of_the_draft_that_no_hash_covers(bundle: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    manifest = read_manifest(copy)
    files = {one: entry for one, entry in manifest.files.items() if one != name}
    write_manifest(copy, msgspec.structs.replace(manifest, files=files))
    with pytest.raises(BadBundle, match=f"does not list {name}"):
        edgelm.load(copy, threads=1)


def test_memory_counts_it(bundle: Path) -> None:
    manifest, draft = read_manifest(bundle), read_manifest(bundle / "draft")
    full = manifest.limits.context
    alone = loaded_bytes(manifest, full)
    assert 0 < draft_bytes(draft, manifest, full) < alone
    with edgelm.load(bundle, threads=1, max_memory=alone) as lm:
        assert lm.context == full
        with pytest.raises(BadInput, match="no draft model"):
            lm.generate(PROMPT, speculation="draft")
    with pytest.raises(DoesNotFit):
        edgelm.load(bundle, threads=1, max_memory=alone // 2, speculation="draft")


@pytest.mark.slow
def test_again_replaces_it_and_exporting_the_bundle_again_drops_it(
    source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    export_model(source, folder, precision="int8", gate="off")
    without = (folder / MANIFEST).read_bytes()
    export_draft(source, folder)
    export_draft(source, folder, precision="int4")
    manifest = read_manifest(folder)
    verify(folder, manifest)
    assert (folder / MANIFEST).read_bytes() != without
    export_model(source, folder, precision="int8", gate="off")
    assert not any(name.startswith("draft/") for name in read_manifest(folder).files)


def test_another_tokenizer_is_refused(bundle: Path, source: Path, tmp_path: Path) -> None:

    other = tmp_path / "other"
    shutil.copytree(source, other)
    path = other / "tokenizer.json"
    values = json.loads(path.read_text())
    vocabulary = values["model"]["vocab"]
    first, second = [token for token in vocabulary if len(token) == 1][:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(values))
    before = (bundle / MANIFEST).read_bytes()
    with pytest.raises(BadInput, match="the same tokenizer"):
        export_draft(other, bundle)
    assert (bundle / MANIFEST).read_bytes() == before
