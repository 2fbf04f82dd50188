"""The real thing made smaller: SmolLM2-135M-Instruct pruned, distilled for three steps, run."""

from pathlib import Path

import pytest

import edgelm
from edgelm.bundle import read_manifest
from edgelm.checkpoint.student import StudentRecord, read_student_record
from edgelm.compress.recipe import Recipe
from edgelm.compress.recipe.tables import DistillStage, ImportanceSettings, Prune
from edgelm.export.pipeline import export_model
from tests.short_texts import sequences

pytestmark = pytest.mark.slow

LAYERS, NEURONS = 12, 768


@pytest.fixture(scope="module")
def student(
    smollm2: Path, texts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    recipe = Recipe(
        teacher=str(smollm2),
        dtype="float32",
        arithmetic="fp32",  # what is measured differs between machines
        data=(str(texts[0]),),
        held_out=str(texts[1]),
        sequence_length=64,
        importance=ImportanceSettings(samples=8),
        prune=Prune(num_hidden_layers=LAYERS, intermediate_size=NEURONS),
        distill=DistillStage(tokens=3 * 4 * 64, batch_size=4, micro_batch=4),
    )
    folder = tmp_path_factory.mktemp("smollm2-student") / "student"
    edgelm.compress_model(recipe, folder)
    return folder


def record_of(student: Path) -> StudentRecord:
    record = read_student_record(student)
    assert record
    return record


def test_the_record(student: Path, smollm2: Path) -> None:
    record = record_of(student)
    assert record.teacher == smollm2.name
    assert record.teacher_parameters == 134_515_008
    sizes = {"num_hidden_layers": LAYERS, "intermediate_size": NEURONS}
    assert record.shape == {**record.teacher_shape, **sizes}
    stages = {one.name: one for one in record.stages}
    assert list(stages) == ["data", "importance", "prune", "distill"]
    assert stages["distill"].tokens == 3 * 4 * 64
    # Three steps only show that learning goes the right way, not a useful student.
    pruned = stages["prune"].figures["held_out_divergence"]
    assert stages["distill"].figures["held_out_divergence"] < pruned


def test_the_student_runs(student: Path, texts: tuple[Path, Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    with sequences(1):
        export_model(
            student,
            bundle,
            precision="int8",
            context=256,
            gate="off",
            calibration=texts[0],
            gate_text=texts[1],
        )
    record = record_of(student)
    assert read_manifest(bundle).lineage.compress == record
    card = (bundle / "README.md").read_text()
    assert f"## A student of {record.teacher}" in card
    assert "| num hidden layers | 30 | 12 |" in card
    assert "distill on 768 tokens" in card
    with edgelm.load(bundle) as lm:
        done = lm.generate("The sky is blue because", max_tokens=8)
    assert len(done.tokens) == 8
