"""Sampled answers: equal for equal models, and a bundle that lost its end of turn fails."""

import json
import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

import edgelm
from edgelm.bundle import hash_files, read_manifest, write_manifest
from edgelm.bundle.records.behavior import Behavior, compare_trait, sign_test
from edgelm.checkpoint.source import open_checkpoint
from edgelm.errors import GateFailed
from edgelm.export import pipeline
from edgelm.export.bundle.text.tokenizer_files import write_tokenizer_files
from edgelm.export.gate import prompts
from edgelm.export.gate.graph_run import measure_behavior, turn_end
from edgelm.export.gate.traits import closes_tags, common_scripts, in_script, loops
from edgelm.export.pipeline import export_model
from edgelm.export.source.reference import Reference
from edgelm.export.work.cache import ArtifactCache
from tests.export.gate.talker import END, save_talker

ASKED = tuple(f"Why {number}?" for number in range(16))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_talker(tmp_path_factory.mktemp("talker"))


@pytest.fixture(scope="module")
def bundle(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talker-bundle") / "bundle"
    export_model(source, folder, precision="fp32")
    return folder


@pytest.fixture
def _asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "PROMPTS", ASKED)
    monkeypatch.setattr(prompts, "MAX_TOKENS", 24)


def behavior(bundle: Path, source: Path, cache: Path) -> Behavior:
    cache.mkdir(exist_ok=True)
    with edgelm.load(bundle, threads=1) as model:
        reference = Reference(open_checkpoint(source))
        found = measure_behavior(model, reference, ArtifactCache(cache), lambda _: None)
    assert found is not None
    return found


@pytest.mark.usefixtures("_asked")
def test_the_same_model_with_the_same_random_numbers_answers_alike(
    bundle: Path, source: Path, tmp_path: Path
) -> None:
    found = behavior(bundle, source, tmp_path / "cache")
    assert found.prompts == len(ASKED)
    ended = found.traits[0]
    assert 0.5 < ended.source <= 1
    assert all((one.lost, one.gained, one.source) == (0, 0, one.bundle) for one in found.traits)
    assert found.passed


@pytest.mark.usefixtures("_asked")
def test_a_missing_end_of_turn_fails(bundle: Path, source: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(bundle, tmp_path / "broken")
    (broken / "generation_config.json").write_text(json.dumps({"bos_token_id": 1}))
    write_manifest(broken, replace(read_manifest(broken), files=hash_files(broken)))
    found = behavior(broken, source, tmp_path / "cache")
    assert found.traits[0].bundle == 0
    assert not found.passed
    assert "ended" in found.failure


@pytest.mark.usefixtures("_asked")
def test_an_export_that_loses_the_end_of_turn_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = write_tokenizer_files

    def without_ends(checkpoint: object, folder: Path) -> None:
        write(checkpoint, folder)  # type: ignore[arg-type]
        (folder / "generation_config.json").write_text("{}")

    monkeypatch.setattr(pipeline, "write_tokenizer_files", without_ends)
    message = r"quality gate failed: the bundle's sampled answers are not like .*ended"
    with pytest.raises(GateFailed, match=message):
        export_model(source, tmp_path / "bundle", precision="fp32")
    assert not (tmp_path / "bundle").exists()
    export_model(source, tmp_path / "bundle", precision="fp32", gate="off")
    gate = read_manifest(tmp_path / "bundle").gate
    assert gate is not None
    assert gate.behavior is not None
    assert (gate.passed, gate.behavior.passed) == (False, False)


def test_the_template_names_the_end_of_a_turn(bundle: Path) -> None:
    with edgelm.load(bundle, threads=1) as model:
        assert turn_end(model) == {END}


@pytest.mark.parametrize(
    ("losses", "gains", "chance"), [(0, 0, 1), (3, 0, 1 / 8), (0, 3, 1), (1, 1, 3 / 4)]
)
def test_the_sign_test_by_hand(losses: int, gains: int, chance: float) -> None:
    assert sign_test(losses, gains) == chance


def test_ten_losses_are_not_chance() -> None:
    source, bundle = [True] * 24, [False] * 10 + [True] * 14
    found = compare_trait("ended", source, bundle)
    assert (found.lost, found.gained, found.holds) == (10, 0, False)
    assert found.error == pytest.approx((10 / 24 * 14 / 24 / 24) ** 0.5)
    assert compare_trait("ended", source, [False] * 9 + [True] * 15).holds


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], False),
        ([9, 9, 9, 9, 9, 9, 9, 9], True),
        ([9, 9, 9, 9], False),
        ([5, 1, 2, 3, 1, 2, 3, 1, 2, 3], True),
        ([1, 2, 3, 1, 2, 3, 1, 2, 4], False),
    ],
)
def test_loops(tokens: list[int], expected: bool) -> None:
    assert loops(tokens) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", True),
        ("<think>a</think> b", True),
        ("<think>a", False),
        ("a</think>", False),
        ("```python\n```", True),
        ("```python\n", False),
        ("1 < 2 and 3 > 2", True),
    ],
)
def test_tags(text: str, expected: bool) -> None:
    assert closes_tags(text) is expected


def test_scripts() -> None:
    scripts = common_scripts(["Why is the sky blue?", "Größe é 1"])
    assert scripts == {"LATIN"}
    assert in_script("An answer", scripts)
    assert in_script("α is an angle of the triangle", scripts)
    assert not in_script("Ответ", scripts)
    assert not in_script("broken \ufffd text", scripts)
    assert in_script("cut \ufffd", scripts)  # a limit may cut a character


@pytest.mark.usefixtures("_asked")
def test_a_template_that_refuses_the_prompts_leaves_plain_texts(
    bundle: Path, source: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(bundle, tmp_path / "broken")
    (broken / "chat_template.jinja").write_text("{{ raise_exception('needs a system message') }}")
    write_manifest(broken, replace(read_manifest(broken), files=hash_files(broken)))
    with edgelm.load(broken, threads=1) as model:
        assert turn_end(model) == set()
    assert behavior(broken, source, tmp_path / "cache").passed
