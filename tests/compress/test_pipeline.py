"""Recipes on a tiny teacher, from its folder to the student's."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import edgelm.compress.synthesis.synthesize as synthesis
from edgelm.checkpoint.student import StudentRecord, read_student_record
from edgelm.compress.data.packing import PackedTokens, calibration_rows
from edgelm.compress.model import load_model
from edgelm.compress.pipeline import compress_model
from edgelm.compress.pruning.layer_removal import block_losses, text_loss
from edgelm.compress.recipe import read_recipe
from edgelm.compress.search.candidates import Candidate
from edgelm.compress.synthesis.plan import FreeText
from edgelm.compress.synthesis.text_filters import Filters
from edgelm.errors import BadCheckpoint, BadInput, UnknownName
from edgelm.files.hashing import file_sha256
from tests.checkpoints.models import save_tiny
from tests.checkpoints.tiny_chat import VOCAB
from tests.compress.recipes import (
    CORRECT,
    DISTILL,
    EVALUATE,
    LENGTH,
    PRUNE,
    QAD,
    SEARCH,
    TEACHER,
    recipe_of,
    stage,
    weights_of,
    write_recipe,
    write_texts,
)
from tests.compress.small_tokenizers import small_tokenizer
from tests.compress.training import same

ANYTHING = Filters(min_characters=1, max_repeated=1, max_run=1, max_unprintable=1)


@pytest.fixture(scope="module")
def whole(bench: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudentRecord]:
    """A student of all the usual stages."""
    student = tmp_path_factory.mktemp("whole") / "student"
    return student, compress_model(
        recipe_of(bench, CORRECT, SEARCH, DISTILL, QAD, EVALUATE), student
    )


def quick(bench: Path, output: Path, *parts: str) -> StudentRecord:
    """Run a recipe with little to distil."""
    return compress_model(recipe_of(bench, *(parts or (PRUNE, DISTILL))), output)


def test_the_record_says_what_was_done(bench: Path, whole: tuple[Path, StudentRecord]) -> None:
    student, record = whole
    assert read_student_record(student) == record
    assert record.teacher == "teacher"
    assert record.teacher_sha256 == file_sha256(bench / "teacher" / "model.safetensors")
    assert record.teacher_shape == {
        "num_hidden_layers": 4,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    assert record.shape != record.teacher_shape
    order = ["data", "correct", "importance", "search", "prune", "distill", "qad", "evaluate"]
    assert [one.name for one in record.stages] == order
    tokens = {one.name: one.tokens for one in record.stages if one.tokens}
    assert tokens == {
        "correct": 512,
        "importance": 16 * LENGTH,
        "search": 2 * 2 * 256,
        "distill": 1024,
        "qad": 256,
    }
    assert stage(record, "distill").settings["learning_rate"] == 3e-3
    assert stage(record, "correct").figures["held_out_loss"] > 0
    assert len(stage(record, "importance").figures["layers"]) == 4
    assert stage(record, "search").figures["shape"] == stage(record, "prune").figures["shape"]
    for name in ("distill", "qad"):
        assert 0 < stage(record, name).figures["held_out_divergence"] < 10
        assert 0 < stage(record, name).figures["loss"] < 10


def test_parameters_are_counted(bench: Path, whole: tuple[Path, StudentRecord]) -> None:
    student, record = whole
    for folder, count in (
        (bench / "teacher", record.teacher_parameters),
        (student, record.parameters),
    ):
        assert sum(one.numel() for one in weights_of(folder).values()) == count


def test_evaluation_before_and_after(whole: tuple[Path, StudentRecord]) -> None:
    _, record = whole
    perplexity = record.evaluation["perplexity:valid.jsonl"]
    assert list(perplexity) == ["teacher", "corrected", "pruned", "student"]
    assert perplexity["corrected"].value < perplexity["teacher"].value
    assert all(figure.n and figure.error and figure.value > 1 for figure in perplexity.values())
    divergence = record.evaluation["kl:valid.jsonl kl"]
    assert list(divergence) == ["pruned", "student"], "of the teacher to itself there is none"


def test_the_student_loads_without_us(whole: tuple[Path, StudentRecord]) -> None:
    student, record = whole
    config = json.loads((student / "config.json").read_text())
    assert config["head_dim"] == 16
    assert {name: config[name] for name in record.shape} == record.shape
    model = AutoModelForCausalLM.from_pretrained(student)
    ids = AutoTokenizer.from_pretrained(student)("The miller waits", return_tensors="pt")
    with torch.inference_mode():
        logits = model(**ids).logits
    assert logits.shape == (1, ids["input_ids"].shape[1], VOCAB)
    assert torch.isfinite(logits).all()
    assert (student / "README.md").read_text().startswith("---\nlicense: apache-2.0\n---\n")


def test_qad_leaves_weights_on_the_grid_of_export(whole: tuple[Path, StudentRecord]) -> None:
    weights = weights_of(whole[0])
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        for block in weights[f"model.layers.0.{name}.weight"].split(32, dim=1):
            assert max(len(row.unique()) for row in block) <= 16
    table = weights["model.embed_tokens.weight"]
    assert max(len(row.unique()) for row in table) > 16, "the head keeps eight bits"


@pytest.mark.slow
def test_qad_runs_again_on_another_grid(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def began(size: int) -> tuple[str, int]:
        """What rounding the last run started from, and how many stages it ran."""
        monkeypatch.setattr("edgelm.compress.recipe.recipe._QAD_GROUP", size)
        lines: list[str] = []
        recipe = recipe_of(bench, PRUNE, QAD.replace("group_size = 32\n", ""))
        compress_model(recipe, tmp_path / "student", report=lines.append)
        [start] = (tmp_path / "student.run").glob("qad*/**/start.safetensors")
        with safe_open(start, "pt") as file:
            return file.metadata()["of"].split(", weights")[0], len(lines)

    # The head's groups are those that divide 48 columns, as export has them.
    assert began(64)[0] == "int4 g64 zp, head int8 g16"
    assert began(16)[0] == "int4 g16 zp, head int8 g16"


def test_the_run_folder_keeps_curves_and_candidates(whole: tuple[Path, StudentRecord]) -> None:
    student, record = whole
    run = student.with_name("student.run")
    lines = (run / "distill" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows[-1]["loss"] == stage(record, "distill").figures["loss"]
    candidates = json.loads((run / "search" / "candidates.json").read_text())
    assert set(Candidate.__struct_fields__) >= set(candidates[0])
    assert candidates[0]["shape"] == record.shape
    assert "<h2>Search</h2>" in (run / "summary.html").read_text()


def test_ratios_to_the_teacher_are_paired(whole: tuple[Path, StudentRecord]) -> None:
    student, record = whole
    figures = record.evaluation["perplexity:valid.jsonl"]
    one, teacher = figures["student"], figures["teacher"]
    assert one.ratio is not None
    assert one.ratio == pytest.approx(one.value / teacher.value, rel=1e-5)
    assert one.ratio_error is not None
    assert one.error is not None
    assert teacher.error is not None
    apart = one.ratio * math.hypot(one.error / one.value, teacher.error / teacher.value)
    assert 0 < one.ratio_error < apart
    assert (teacher.ratio, teacher.ratio_text) == (None, "")
    assert one.ratio_text.startswith(f"×{one.ratio:.3f} ± ")
    page = (student.with_name("student.run") / "summary.html").read_text()
    assert f"{one.ratio:.3f} ± {one.ratio_error:.3f}" in page


def test_an_explicit_shape(bench: Path, tmp_path: Path) -> None:
    record = quick(bench, tmp_path / "student")
    sizes = {"num_hidden_layers": 3, "hidden_size": 48}
    assert record.shape == {**record.teacher_shape, **sizes}


def test_layers_go_as_a_block(bench: Path, tmp_path: Path) -> None:
    block = '[importance]\nsamples = 16\nlayers = "block"\nlayer_samples = 4\n'
    quick(bench, tmp_path / "student", block, "[prune]\nnum_hidden_layers = 2\n")
    run = tmp_path / "student.run"
    kept = json.loads((run / "importance" / "layers-2.json").read_text())
    rows = list(calibration_rows(PackedTokens.load(run / "data" / "tokens.npy"), 4, 4))
    teacher = load_model(bench / "teacher", dtype=torch.bfloat16)
    losses = block_losses(teacher, 2, text_loss(rows))
    first = losses.index(min(losses))
    assert kept == [layer for layer in range(4) if layer not in (first, first + 1)]
    student, whole = weights_of(tmp_path / "student"), weights_of(bench / "teacher")
    for ours, theirs in enumerate(kept):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert torch.equal(student[name.format(ours)], whole[name.format(theirs)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sampled", "top-k"])
def test_a_cached_teacher(bench: Path, tmp_path: Path, kind: str) -> None:
    cache = f'[distill.cache]\nkind = "{kind}"\nsize = 16\n'
    lines: list[str] = []
    recipe = recipe_of(bench, "max_tokens = 2048\n", PRUNE, DISTILL, cache)
    record = compress_model(recipe, tmp_path / "student", report=lines.append)
    order = ["data", "importance", "prune", "cache", "distill"]
    assert [one.name for one in record.stages] == order
    rows = 2048 // LENGTH
    wanted = rows * (LENGTH - 1) * 16 * (2 if kind == "sampled" else 4)
    assert stage(record, "cache").figures["bytes"] == wanted
    files = (tmp_path / "student.run" / "cache" / "cache").rglob("*.bin")
    assert sum(path.stat().st_size for path in files) == wanted
    assert "cache: the teacher's predictions will take 0 MB" in lines
    assert stage(record, "distill").figures["loss"] > 0


@pytest.mark.slow
def test_a_trimmed_vocabulary(bench: Path, tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "teacher", vocab_size=1202)
    content = small_tokenizer("byte-level")
    (tmp_path / "teacher" / "tokenizer.json").write_text(json.dumps(content))
    for name in ("train.jsonl", "valid.jsonl"):
        shutil.copyfile(bench / name, tmp_path / name)
    recipe = recipe_of(tmp_path, "[vocabulary]\nsize = 512\n", PRUNE, DISTILL, EVALUATE)
    record = compress_model(recipe, tmp_path / "student")
    figures = stage(record, "vocabulary").figures
    assert figures["vocab_size"] == 512
    assert figures["parameters_saved"] == (1202 - 512) * 64
    assert 0.5 < figures["coverage"] < 1
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    assert (config["vocab_size"], config["hidden_size"]) == (512, 48)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert len(tokenizer) == 512
    text = "The miller waits until the level has dropped."
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert set(record.evaluation["perplexity:valid.jsonl"]) == {"teacher", "pruned", "student"}


def test_text_from_the_teacher(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a random teacher writes is noise, which the filters rightly drop.
    monkeypatch.setitem(synthesis._FILTERS, FreeText, ANYTHING)
    settings = "[synthesize]\ndocuments = 8\nmax_new_tokens = 40\n"
    text = TEACHER.replace('data = ["train.jsonl"]\n', "")
    small = "[distill]\ntokens = 64\nbatch_size = 2\nmicro_batch = 2\n"
    written = []
    for seed in (0, 1):
        parts = (f"seed = {seed}\n", settings, PRUNE, small)
        record = compress_model(
            read_recipe(write_recipe(bench, text, *parts)), tmp_path / "student"
        )
        assert [one.name for one in record.stages][:2] == ["synthesize", "data"]
        assert stage(record, "synthesize").figures["documents"] == 8
        assert stage(record, "data").figures["tokens"] > 64
        written.append((tmp_path / "student.run" / "synthesize" / "text.jsonl").read_text())
        assert len(written[-1].splitlines()) == 8
    assert written[0] != written[1], "another seed writes another text"


def test_answers_are_learned(bench: Path, tmp_path: Path) -> None:
    align = '[align]\ndata = "chat.jsonl"\nlearning_rate = 1e-3\nepochs = 2\n'
    record = quick(bench, tmp_path / "student", PRUNE, DISTILL, align)
    figures = stage(record, "align").figures
    assert (figures["steps"], figures["examples"]) == (4, 16)
    student = weights_of(tmp_path / "student")
    run = tmp_path / "student.run"
    assert same(student, weights_of(run / "align" / "model"))
    assert not same(student, weights_of(run / "distill" / "model"))


def test_licence_and_type(bench: Path, tmp_path: Path) -> None:
    shutil.copytree(bench / "teacher", tmp_path / "teacher")
    (tmp_path / "teacher" / "LICENSE.txt").write_text("do as you like")
    for name in ("train.jsonl", "valid.jsonl"):
        shutil.copyfile(bench / name, tmp_path / name)
    text = TEACHER.replace("float32", "bfloat16")
    compress_model(read_recipe(write_recipe(tmp_path, text, PRUNE)), tmp_path / "student")
    assert (tmp_path / "student" / "LICENSE.txt").read_text() == "do as you like"
    with safe_open(tmp_path / "student" / "model.safetensors", framework="pt") as tensors:
        names = tensors.keys()
        assert {tensors.get_tensor(name).dtype for name in names} == {torch.bfloat16}
    assert json.loads((tmp_path / "student" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        (("[prune]\nhidden_size = 65\n",), BadInput, "cannot prune hidden_size to 65"),
        (
            ('[target]\nname = "jetson-orin-nano"\n[prune]\nhidden_size = 48\n',),
            BadInput,
            "illegal shape for TensorRT: hidden_size 48",
        ),
        (('[target]\nname = "abacus"\n', PRUNE), UnknownName, "unknown target 'abacus'"),
        ((PRUNE, "[evaluate]\ntasks = ['chess']\n"), UnknownName, "unknown task 'chess"),
        ((PRUNE, "[evaluate]\ntasks = ['kl:no.jsonl']\n"), BadInput, "no such file: no.jsonl"),
        ((PRUNE, "[align]\ndata = 'no.jsonl'\n"), BadInput, r"\[align\] data: no such file"),
        (
            (PRUNE, DISTILL.replace("batch_size = 4", "batch_size = 1024")),
            BadInput,
            "fewer than one step needs",
        ),
    ],
)
def test_recipes_that_cannot_run(
    bench: Path, tmp_path: Path, parts: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        quick(bench, tmp_path / "student", *parts)
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, r"no such data file: .*data\.jsonl"),
        ('{"content": "x"}\n', r"data\.jsonl:1: expected a field `text` .* found content"),
        ('{"text": "x"}\n{"text"\n', r"data\.jsonl:2 is not JSON"),
        ('{"text": ""}\n', "too little data: 1 documents with 0 tokens"),
        ("\n", "too little data: 0 documents"),
    ],
    ids=["missing", "fields", "json", "no-text", "no-document"],
)
def test_data_that_cannot_be_used(
    bench: Path, tmp_path: Path, lines: str | None, message: str
) -> None:
    data = tmp_path / "data.jsonl"
    if lines is not None:
        data.write_text(lines)
    text = TEACHER.replace("train.jsonl", str(data))
    recipe = read_recipe(write_recipe(bench, text, PRUNE))
    with pytest.raises(BadInput, match=message):
        compress_model(recipe, tmp_path / "student")


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        ("train.jsonl", "gone.jsonl", r"no such data file: .*gone\.jsonl"),
        ("train.jsonl", "recipe.toml", r"recipe\.toml: unknown kind of data file"),
        ("valid.jsonl", "gone.txt", r"no such data file: .*gone\.txt"),
        ('teacher"', 'gone"', "no such file or folder"),
    ],
    ids=["data", "kind", "held-out", "teacher"],
)
def test_nothing_is_written_for_a_recipe_that_cannot_run(
    bench: Path, tmp_path: Path, was: str, now: str, message: str
) -> None:
    assert was in TEACHER
    recipe = read_recipe(write_recipe(bench, TEACHER.replace(was, now), PRUNE))
    with pytest.raises(BadInput, match=message):
        compress_model(recipe, tmp_path / "student")
    assert not list(tmp_path.iterdir())


def test_no_prompts_no_run_folder(bench: Path, tmp_path: Path) -> None:
    parts = ("[synthesize]\nprompts = 'gone.jsonl'\n", PRUNE)
    recipe = read_recipe(write_recipe(bench, TEACHER, *parts))
    with pytest.raises(BadInput, match=r"no such data file: .*gone\.jsonl"):
        compress_model(recipe, tmp_path / "student")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_of_another_model(bench: Path, tmp_path: Path) -> None:
    shutil.copytree(bench / "teacher", tmp_path / "teacher")
    path = tmp_path / "teacher" / "tokenizer.json"
    content: dict[str, Any] = json.loads(path.read_text())
    extra = {**content["added_tokens"][0], "id": VOCAB, "content": "<one more>"}
    content["added_tokens"].append(extra)
    path.write_text(json.dumps(content))
    write_texts(tmp_path / "train.jsonl", ["The miller waits. " * 50])
    write_texts(tmp_path / "valid.jsonl", ["The miller waits. " * 10])
    recipe = read_recipe(write_recipe(tmp_path, TEACHER, PRUNE))
    message = "tokenizer and model vocabulary disagree: the tokenizer has 321 tokens, .* for 320"
    with pytest.raises(BadCheckpoint, match=message):
        compress_model(recipe, tmp_path / "student")


def test_other_things_are_not_overwritten(bench: Path, tmp_path: Path) -> None:
    for name in ("student", "other.run"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"student exists and contains no compress\.json, so it"):
        quick(bench, tmp_path / "student")
    with pytest.raises(
        BadInput, match=r"other\.run exists and is not a run folder of edge-compress"
    ):
        quick(bench, tmp_path / "other")
    for name in ("student", "other.run"):
        assert [path.name for path in (tmp_path / name).iterdir()] == ["thesis.txt"]
