"""`--until` and `--only`: a part of a recipe's stages."""

import json
import shutil
from pathlib import Path

import pytest

from edgelm.compress.cli import main
from edgelm.compress.pipeline import compress_model, run_stages_until
from edgelm.compress.recipe import read_recipe
from edgelm.compress.recipe.stage_names import stage_names
from edgelm.compress.run.run_folder import Part
from edgelm.errors import BadInput, UnknownName
from tests.compress.recipes import (
    CORRECT,
    DISTILL,
    EVALUATE,
    PRUNE,
    QAD,
    SEARCH,
    TEACHER,
    recipe_of,
    weights_of,
    workshop,
    write_recipe,
)
from tests.compress.training import same

ALL = (CORRECT, PRUNE, DISTILL, QAD, EVALUATE)
ORDER = ("data", "correct", "importance", "prune", "distill", "qad", "evaluate")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workshop and the student of an uninterrupted run."""
    folder = workshop(tmp_path_factory.mktemp("parts"))
    record = compress_model(recipe_of(folder, *ALL), folder / "student")
    assert tuple(one.name for one in record.stages) == stage_names(recipe_of(folder, *ALL)) == ORDER
    return folder


def stages(run: Path) -> list[str]:
    return sorted(path.parent.name for path in run.glob("*/done.json"))


def test_the_stages_of_other_recipes(folder: Path) -> None:
    """Names are those of the run folder, whatever the recipe."""
    searched = recipe_of(folder, SEARCH, DISTILL, '[distill.cache]\nkind = "top-k"\nsize = 8\n')
    record = compress_model(searched, folder / "searched")
    names = ("data", "importance", "search", "prune", "cache", "distill")
    assert tuple(one.name for one in record.stages) == stage_names(searched) == names
    puzzle = "[target]\nparameters = 0.8\n[puzzle]\ntokens = 256\nbatch_size = 2\nscore_rows = 2\n"
    recipe = recipe_of(folder, puzzle)
    record = compress_model(recipe, folder / "puzzled")
    assert tuple(one.name for one in record.stages) == stage_names(recipe)
    draft = recipe_of(folder, "[draft]\nnum_hidden_layers = 1\n", DISTILL)
    record = compress_model(draft, folder / "drafted")
    assert tuple(one.name for one in record.stages) == stage_names(draft)


def test_part_after_part_makes_the_same_student(folder: Path, tmp_path: Path) -> None:
    recipe, student = recipe_of(folder, *ALL), tmp_path / "student"
    found = run_stages_until(recipe, student, Part("prune"))
    assert tuple(one.name for one in found) == ORDER[:4]
    for only in ("distill", "qad", "evaluate"):
        lines: list[str] = []
        found = run_stages_until(recipe, student, Part(only, only=True), report=lines.append)
        assert found[-1].name == only
        assert "prune: unchanged, skipped" in lines
        assert not student.exists()
    lines = []
    record = compress_model(recipe, student, report=lines.append)
    skipped = [line.partition(":")[0] for line in lines if line.endswith("unchanged, skipped")]
    assert skipped == list(ORDER)
    assert [one.name for one in record.stages] == list(ORDER)
    assert same(weights_of(student), weights_of(folder / "student"))


def test_a_missing_stage_is_not_run_for_the_only_one(folder: Path, tmp_path: Path) -> None:
    recipe, student = recipe_of(folder, *ALL), tmp_path / "student"
    run_stages_until(recipe, student, Part("data"))
    with pytest.raises(BadInput, match=r"--only distill needs the stage correct, but .*--until"):
        run_stages_until(recipe, student, Part("distill", only=True))
    assert stages(tmp_path / "student.run") == ["data"]


def test_what_changed_is_kept_for_the_only_stage(folder: Path, tmp_path: Path) -> None:
    """A typing mistake in an earlier table moves no result aside and trains nothing."""
    shutil.copytree(folder / "student.run", tmp_path / "student.run")
    before = stages(tmp_path / "student.run")
    changed = [part.replace("tokens = 1024", "tokens = 512") for part in ALL]
    with pytest.raises(BadInput, match="needs the stage distill"):
        run_stages_until(
            recipe_of(folder, *changed), tmp_path / "student", Part("evaluate", only=True)
        )
    assert stages(tmp_path / "student.run") == before
    assert not (tmp_path / "student.run" / "replaced").exists()
    damaged = tmp_path / "student.run" / "prune" / "model" / "model.safetensors"
    damaged.write_bytes(b"")
    with pytest.raises(BadInput, match=r"needs the stage prune, but .*missing or damaged"):
        run_stages_until(recipe_of(folder, *ALL), tmp_path / "student", Part("qad", only=True))
    assert damaged.exists()


def test_a_stage_that_the_recipe_does_not_have(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="no stage 'search'; its stages are data, importance"):
        run_stages_until(recipe_of(folder, PRUNE), tmp_path / "student", Part("search"))
    assert not (tmp_path / "student.run").exists()


def test_on_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(write_recipe(folder, TEACHER, PRUNE, DISTILL))
    student = ("-o", str(tmp_path / "student"))
    assert main([recipe, *student, "--only", "distill"]) == 2
    assert "--only distill needs the stage data" in capsys.readouterr().err
    assert main([recipe, *student, "--until", "prune"]) == 0
    assert capsys.readouterr().out.startswith("prune: done; the same command without --until")
    assert main([recipe, *student, "--only", "distill"]) == 0
    assert not (tmp_path / "student").exists()
    assert main([recipe, *student]) == 0
    assert (tmp_path / "student" / "compress.json").exists()
    for wrong, message in (
        (("--until", "evaluate"), "this recipe has no stage 'evaluate'"),
        (("--until", "prune", "--dry-run"), "--dry-run describes all stages"),
    ):
        assert main([recipe, *student, *wrong]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([recipe, *student, "--until", "prune", "--only", "prune"])


def test_arithmetic_of_another_device_is_kept(folder: Path, tmp_path: Path) -> None:
    """`--only` on a machine with another kind of device moves nothing aside."""
    automatic = TEACHER.replace('arithmetic = "fp32"', 'arithmetic = "auto"')
    recipe = read_recipe(write_recipe(folder, automatic, PRUNE, DISTILL, name="automatic"))
    run_stages_until(recipe, tmp_path / "student", Part("prune"))
    place = tmp_path / "student.run" / "arithmetic" / "inputs.json"
    content = json.loads(place.read_text())
    done = place.with_name("done.json")
    for path in (place, done):
        path.write_text(path.read_text().replace(content["key"], "0" * 16))
    with pytest.raises(BadInput, match=r"made on another kind of device.*set `arithmetic`"):
        run_stages_until(recipe, tmp_path / "student", Part("distill", only=True))
    assert not (tmp_path / "student.run" / "replaced").exists()
