"""A recipe started again: what is skipped, what is rerun, and that a kill changes nothing."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import edgelm.compress.stages.state as state
from edgelm.checkpoint.student import StudentRecord, read_student_record
from edgelm.compress.distillation.metrics import read_metrics
from edgelm.compress.pipeline import compress_model
from edgelm.compress.recipe import read_recipe
from tests.compress.recipes import (
    CORRECT,
    DISTILL,
    EVALUATE,
    PRUNE,
    QAD,
    SEARCH,
    TEACHER,
    recipe_of,
    stage,
    weights_of,
    workshop,
    write_recipe,
)
from tests.compress.training import same
from tests.forks import run_forked

USUAL = ("seed = 3\n", CORRECT, PRUNE, DISTILL, QAD, EVALUATE)
EVERYTHING = (
    "max_tokens = 2048\n",
    CORRECT,
    SEARCH,
    DISTILL,
    '[distill.cache]\nkind = "top-k"\nsize = 64\n',
    QAD,
    '[align]\ndata = "chat.jsonl"\n',
    EVALUATE,
)


def run(*arguments: str, processes: int = 1) -> int:
    """Run a recipe in another process; its group ends with its launcher."""
    if processes == 1:
        return run_forked("tests.compress.run_recipe", *arguments)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    module = [*launcher, "-m", "tests.compress.run_recipe", *arguments]
    with subprocess.Popen(
        [sys.executable, *module],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as started:
        try:
            return started.wait(timeout=300)
        except subprocess.TimeoutExpired:
            started.send_signal(signal.SIGTERM)  # torchrun ends its processes
            raise


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workshop and in it the student of an uninterrupted run; tests work on copies of the run."""
    folder = workshop(tmp_path_factory.mktemp("restarts"))
    compress_model(recipe_of(folder, *USUAL), folder / "student")
    return folder


def copy_of_run(folder: Path, output: Path, *, without: tuple[str, ...] = ()) -> Path:
    """A copy of the finished student and its run folder, or of the run without some stages."""
    shutil.copytree(folder / "student.run", output.with_name(f"{output.name}.run"))
    if without:
        for name in without:
            shutil.rmtree(output.with_name(f"{output.name}.run") / name)
    else:
        shutil.copytree(folder / "student", output)
    return output


def again(folder: Path, student: Path, *parts: str) -> tuple[StudentRecord, dict[str, str]]:
    """Run into a folder that exists; the record, and each stage as `skipped` or `ran`."""
    lines: list[str] = []
    record = compress_model(recipe_of(folder, *parts), student, report=lines.append)
    skipped = [line.partition(":")[0] for line in lines if line.endswith("unchanged, skipped")]
    return record, {one.name: "skipped" if one.name in skipped else "ran" for one in record.stages}


def changed(old: str, new: str) -> tuple[str, ...]:
    parts = tuple(part.replace(old, new) for part in USUAL)
    assert parts != USUAL
    return parts


def test_everything_is_skipped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = copy_of_run(folder, tmp_path / "student")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded, so something is computed again")

    monkeypatch.setattr(state, "load_model", refuse)
    record, found = again(folder, student, *USUAL)
    assert set(found.values()) == {"skipped"}
    assert record == read_student_record(folder / "student")
    assert same(weights_of(student), weights_of(folder / "student"))


@pytest.mark.parametrize(
    ("parts", "runs"),
    [
        (changed("limit = 4", "limit = 2"), {"evaluate"}),
        (changed("tokens = 256", "tokens = 128"), {"qad", "evaluate"}),
        (changed("layers = 3", "layers = 2"), {"prune", "distill", "qad", "evaluate"}),
    ],
    ids=["evaluate", "qad", "shape"],
)
@pytest.mark.slow
def test_a_change_reruns_what_depends_on_it(
    folder: Path, tmp_path: Path, parts: tuple[str, ...], runs: set[str]
) -> None:
    _, found = again(folder, copy_of_run(folder, tmp_path / "student"), *parts)
    assert {name for name, what in found.items() if what == "ran"} == runs


def test_another_tokenizer_reruns_everything(tmp_path: Path) -> None:
    """Weights alone do not identify a teacher."""
    workshop(tmp_path)
    again(tmp_path, tmp_path / "student", PRUNE)
    template = tmp_path / "teacher" / "chat_template.jinja"
    template.write_text(template.read_text().replace("<s>", "<s>\n"))
    _, found = again(tmp_path, tmp_path / "student", PRUNE)
    assert set(found.values()) == {"ran"}


@pytest.mark.parametrize(
    ("when", "missing"),
    [
        ("distill: step 5/", ("prune", "distill", "qad", "evaluate")),
        ("qad: step 1/", ("qad", "evaluate")),
    ],
    ids=["distill", "qad"],
)
def test_kill_9_and_resume(
    folder: Path, tmp_path: Path, when: str, missing: tuple[str, ...]
) -> None:
    recipe = write_recipe(folder, TEACHER, *USUAL, name="killed")
    student = copy_of_run(folder, tmp_path / "student", without=missing)
    assert run(str(recipe), str(student), "--die-at", when) == -9
    assert not student.exists()
    lines: list[str] = []
    record = compress_model(read_recipe(recipe), student, report=lines.append)
    assert f"{when.partition(':')[0]}: resuming" in lines
    assert same(weights_of(student), weights_of(folder / "student"))
    expected = read_student_record(folder / "student")
    assert expected is not None
    assert record.evaluation == expected.evaluation
    for name in ("distill", "qad"):
        assert stage(record, name).figures == stage(expected, name).figures


@pytest.mark.slow
def test_two_processes_make_the_student_of_one(folder: Path, tmp_path: Path) -> None:
    recipe = write_recipe(folder, TEACHER, *EVERYTHING, name="two")
    assert run(str(recipe), str(tmp_path / "two"), processes=2) == 0
    one = compress_model(read_recipe(recipe), tmp_path / "one")
    both = compress_model(read_recipe(recipe), tmp_path / "two")
    assert [each.name for each in both.stages] == [each.name for each in one.stages]
    assert both.shape == one.shape
    assert both.parameters == one.parameters
    ours = weights_of(tmp_path / "two.run" / "distill" / "model")
    for name, tensor in weights_of(tmp_path / "one.run" / "distill" / "model").items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=2e-3)
    for task, figures in one.evaluation.items():
        for who, figure in figures.items():
            assert both.evaluation[task][who].value == pytest.approx(figure.value, rel=0.02)


def test_less_memory_continues_the_training(folder: Path, tmp_path: Path) -> None:
    """Settings that change no result rerun nothing, whether the stage is done or interrupted."""
    parts = tuple(part.replace("micro_batch = 2", "micro_batch = 1") for part in USUAL)
    parts = tuple(part.replace("checkpoint_steps = 2", "checkpoint_steps = 3") for part in parts)
    _, found = again(folder, copy_of_run(folder, tmp_path / "done"), *parts)
    assert set(found.values()) == {"skipped"}
    recipe = write_recipe(folder, TEACHER, *USUAL, name="killed")
    missing = ("distill", "qad", "evaluate")
    student = copy_of_run(folder, tmp_path / "student", without=missing)
    assert run(str(recipe), str(student), "--die-at", "distill: step 5/") == -9
    lines: list[str] = []
    compress_model(recipe_of(folder, *parts), student, report=lines.append)
    assert "distill: resuming" in lines
    ours = weights_of(student.with_name("student.run") / "distill" / "model")
    for name, tensor in weights_of(folder / "student.run" / "distill" / "model").items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=2e-5)


def test_a_run_that_ended_early_is_continued(folder: Path, tmp_path: Path) -> None:
    """`stop_after` raised or removed: the rest of the same schedule, not all of it again."""
    student = tmp_path / "student"
    usual = ("seed = 3\n", CORRECT, PRUNE)
    for part in ("stop_after = 384\n", "stop_after = 640\n", ""):
        lines: list[str] = []
        record = compress_model(
            recipe_of(folder, *usual, DISTILL + part), student, report=lines.append
        )
        continued = "distill: continuing with another length" in lines
        assert continued == (part != "stop_after = 384\n")
        steps = (student.with_name("student.run") / "distill" / "metrics.jsonl").read_text()
        tokens = stage(record, "distill").tokens
        assert tokens == {"stop_after = 384\n": 384, "stop_after = 640\n": 640, "": 1024}[part]
        assert len(steps.splitlines()) == tokens // 128
    whole = folder / "student.run" / "distill" / "model"
    assert same(
        weights_of(student.with_name("student.run") / "distill" / "model"), weights_of(whole)
    )
    lines = []
    compress_model(
        recipe_of(folder, *usual, DISTILL + "stop_after = 384\n"), student, report=lines.append
    )
    rerun = "distill: 8 steps are done, and the training now has 3, rerunning"
    assert rerun in lines, "what is past the end cannot be undone"


WSD = """schedule = "wsd"
decay = 0.25
"""


def wsd(tokens: int, warmup: float, more: str = "") -> str:
    settings = DISTILL.replace("tokens = 1024", f"tokens = {tokens}")
    return f"{settings}{WSD}warmup = {warmup}\n{more}"


@pytest.mark.parametrize("stopped", ["killed", "stop_after"])
def test_the_length_may_change_while_the_rate_is_constant(
    folder: Path, tmp_path: Path, stopped: str
) -> None:
    """`tokens` raised or lowered before the decay gives the student of that length."""
    usual, student = ("seed = 3\n", CORRECT, PRUNE), tmp_path / "student"
    copy_of_run(folder, student, without=("distill", "qad", "evaluate"))
    if stopped == "killed":
        recipe = write_recipe(folder, TEACHER, *usual, wsd(2048, 0.1))  # 16 steps, 2 of the warmup
        assert run(str(recipe), str(student), "--die-at", "distill: step 5/") == -9
    else:
        compress_model(recipe_of(folder, *usual, wsd(2048, 0.1, "stop_after = 640\n")), student)
    lines: list[str] = []
    shorter = recipe_of(folder, *usual, wsd(1024, 0.2))  # 8 steps, 2 of the warmup
    compress_model(shorter, student, report=lines.append)
    assert "distill: continuing with another length" in lines
    assert not (student.with_name("student.run") / "replaced").exists()
    fresh = tmp_path / "fresh"
    copy_of_run(folder, fresh, without=("distill", "qad", "evaluate"))
    compress_model(shorter, fresh)
    folders = [one.with_name(f"{one.name}.run") / "distill" for one in (student, fresh)]
    assert same(*(weights_of(one / "model") for one in folders))
    metrics = [(one / "metrics.jsonl").read_text().splitlines() for one in folders]
    assert len(metrics[0]) == len(metrics[1]) == 8


def test_a_training_may_end_at_its_last_checkpoint(folder: Path, tmp_path: Path) -> None:
    """It went further before, but the checkpoint has what a training that ends there has."""
    usual, student = ("seed = 3\n", CORRECT, PRUNE), tmp_path / "student"
    constant = 'schedule = "constant"\nwarmup = 0.0\nevaluate_every = 128\n'
    copy_of_run(folder, student, without=("distill", "qad", "evaluate"))
    recipe = write_recipe(folder, TEACHER, *usual, DISTILL + constant)
    assert run(str(recipe), str(student), "--die-at", "distill: step 7/") == -9
    shorter = DISTILL.replace("tokens = 1024", "tokens = 768") + constant
    fresh, lines = tmp_path / "fresh", list[str]()
    copy_of_run(folder, fresh, without=("distill", "qad", "evaluate"))
    records = [
        compress_model(recipe_of(folder, *usual, shorter), one, report=lines.append)
        for one in (student, fresh)
    ]
    assert "distill: continuing with another length" in lines
    assert stage(records[0], "distill").figures == stage(records[1], "distill").figures
    folders = [one.with_name(f"{one.name}.run") / "distill" for one in (student, fresh)]
    assert same(*(weights_of(one / "model") for one in folders))
    for name in ("metrics.jsonl", "held_out.jsonl"):
        steps = [[row["step"] for row in read_metrics(one / name)] for one in folders]
        assert steps[0] == steps[1] == [1, 2, 3, 4, 5, 6]


def test_a_result_without_checkpoints_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    student, lines = copy_of_run(folder, tmp_path / "student"), list[str]()
    run_folder = student.with_name("student.run")
    shutil.rmtree(run_folder / "qad" / "checkpoints")
    longer = changed("tokens = 256", "tokens = 384")[:-1]
    compress_model(recipe_of(folder, *longer), student, report=lines.append)
    assert "qad: its checkpoints were removed, rerunning" in lines
    replaced = run_folder / "replaced" / "qad-1" / "model"
    assert same(weights_of(replaced), weights_of(folder / "student.run" / "qad" / "model"))


@pytest.mark.parametrize(
    ("tokens", "warmup", "reason"),
    [
        (
            2048,
            0.2,
            "the learning rate of step 1 was 0.0015, and is now 0.00075",
        ),
        (2048, 0.1, "the learning rate of step 8 was 0.001505, and is now 0.003"),
        (512, 0.4, "8 steps are done, and the training now has 4"),
    ],
)
def test_a_length_that_would_change_done_steps_reruns_them(
    folder: Path, tmp_path: Path, tokens: int, warmup: float, reason: str
) -> None:
    student = tmp_path / "student"
    copy_of_run(folder, student, without=("distill", "qad", "evaluate"))
    usual = ("seed = 3\n", CORRECT, PRUNE)
    compress_model(recipe_of(folder, *usual, wsd(1024, 0.2)), student)  # its rate falls from step 7
    lines: list[str] = []
    changed = recipe_of(folder, *usual, wsd(tokens, warmup, "stop_after = 1024\n"))
    compress_model(changed, student, report=lines.append)
    assert f"distill: {reason}, rerunning" in lines
    assert (student.with_name("student.run") / "replaced" / "distill-1" / "model").is_dir()


@pytest.mark.parametrize("name", ["correct", "qad"])
def test_attention_within_documents_is_trained_again(
    folder: Path, tmp_path: Path, name: str
) -> None:
    """The rows are the same, but what a token sees is not."""
    parts = (CORRECT, PRUNE) if name == "correct" else (PRUNE, QAD)
    compress_model(recipe_of(folder, *parts), tmp_path / "student")
    _, found = again(folder, tmp_path / "student", "within_documents = true\n", *parts)
    assert found["data"] == "skipped"
    assert found[name] == "ran"


def test_a_search_with_a_loss_on_hidden_states_depends_on_micro_batches(
    folder: Path, tmp_path: Path
) -> None:
    search = (SEARCH, DISTILL, "hidden_states = true\n")
    compress_model(recipe_of(folder, *search), tmp_path / "student")
    other = tuple(part.replace("micro_batch = 2", "micro_batch = 4") for part in search)
    _, found = again(folder, tmp_path / "student", *other)
    assert (found["importance"], found["search"]) == ("skipped", "ran")


def test_least_squares_after_a_recipe_that_only_removed_layers(
    folder: Path, tmp_path: Path
) -> None:
    """The scores are the same; what least squares need is collected when it is needed."""
    layers = PRUNE.replace("hidden_size = 48\n", "")
    compress_model(recipe_of(folder, layers), tmp_path / "student")
    moments = tmp_path / "student.run" / "importance" / "moments"
    assert not moments.exists()
    narrow = layers + "intermediate_size = 64\n"
    _, found = again(folder, tmp_path / "student", narrow)
    assert (found["importance"], found["prune"]) == ("skipped", "ran")
    assert moments.is_dir()
    compress_model(recipe_of(folder, narrow), tmp_path / "fresh")
    assert same(weights_of(tmp_path / "student"), weights_of(tmp_path / "fresh"))


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others(folder: Path, tmp_path: Path) -> None:
    """Under torchrun: the second one waits for a stage that the main one cannot do."""
    short = TEACHER.replace("sequence_length = 32", "sequence_length = 64")
    recipe = write_recipe(folder, short, PRUNE, DISTILL, name="short")
    data = folder / "few.jsonl"
    data.write_text('{"text": "Few words."}\n')
    recipe.write_text(recipe.read_text().replace("train.jsonl", "few.jsonl"))
    started = time.monotonic()
    assert run(str(recipe), str(tmp_path / "student"), processes=2) != 0
    assert time.monotonic() - started < 120
    assert not (tmp_path / "student").exists()
