"""What a recipe will take, against counts by hand and against the papers' job."""

import json
from pathlib import Path

import msgspec
import pytest

from edgelm.compress.cli import main
from edgelm.compress.durations import duration
from edgelm.compress.preflight import preflight, student_spec
from edgelm.compress.recipe import read_recipe
from edgelm.compress.recipe.stage_names import stage_names
from edgelm.compress.start_plan import StagePlan, plan_stages, plan_table
from edgelm.errors import BadInput, DoesNotFit
from edgelm.spec.decoder import DecoderSpec
from tests.checkpoints.models import tiny_config
from tests.compress.recipes import DISTILL, LENGTH, PRUNE, SEARCH, recipe_of

RECIPES = Path(__file__).parents[2] / "docs" / "recipes"
LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
TINY = DecoderSpec.from_hf(tiny_config("llama").to_dict())


def stages_of(*parts: str, bench: Path) -> dict[str, StagePlan]:
    return {one.name: one for one in plan_stages(recipe_of(bench, *parts), TINY, bf16=False)}


def test_a_training_by_hand(bench: Path) -> None:
    stages = stages_of(PRUNE, DISTILL, bench=bench)
    assert list(stages) == ["data", "importance", "prune", "distill"]
    assert stages["importance"].tokens == 16 * 32
    distill = stages["distill"]
    assert distill.tokens == 1024
    assert TINY.num_hidden_layers == 4

    def forward(layers: int, hidden: int) -> float:
        attention = hidden * (TINY.q_size + 2 * TINY.kv_size) + TINY.q_size * hidden
        matrices = layers * (attention + 3 * hidden * TINY.intermediate_size)
        return 2 * (matrices + TINY.vocab_size * hidden + layers * TINY.q_size * 32)

    assert distill.operations == 1024 * (3 * forward(3, 48) + forward(4, 64))


def test_a_cached_teacher_by_hand(bench: Path) -> None:
    live = stages_of(PRUNE, DISTILL, bench=bench)["distill"]
    recipe = recipe_of(bench, PRUNE, DISTILL, '[distill.cache]\nkind = "top-k"\nsize = 8\n')
    recipe = msgspec.structs.replace(recipe, max_tokens=100 * LENGTH + 7)
    found = plan_stages(recipe, TINY, bf16=False)
    assert [one.name for one in found] == ["data", "importance", "prune", "cache", "distill"]
    cache, distill = found[-2:]
    assert cache.disk_bytes == 100 * (LENGTH - 1) * 8 * (2 + 2), "an id and a probability"
    assert cache.operations / (100 * LENGTH + 7) == (live.operations - distill.operations) / 1024
    assert live.memory_bytes - distill.memory_bytes == cache.memory_bytes == 4 * TINY.parameters
    assert recipe.distill is not None
    measured = msgspec.structs.replace(
        recipe, distill=msgspec.structs.replace(recipe.distill, evaluate_every=512)
    )
    watched = plan_stages(measured, TINY, bf16=False)[-1]
    assert watched.memory_bytes == live.memory_bytes, "the teacher, for held-out text"
    assert watched.operations == distill.operations
    endless = msgspec.structs.replace(recipe, max_tokens=None)
    about = plan_stages(endless, TINY, bf16=False)[-2]
    size = (bench / "train.jsonl").stat().st_size // 4
    assert about.tokens == size
    assert about.disk_bytes == size // LENGTH * (LENGTH - 1) * 8 * 4
    table = plan_table([about], operations_per_second=1e9)
    assert f"~{size:,}" in table, "an estimate by the size of the file"
    (bench / "texts").mkdir()
    (bench / "texts" / "README.md").write_text("No text to train on.")
    (bench / "texts" / "train.jsonl").write_bytes((bench / "train.jsonl").read_bytes())
    folder = msgspec.structs.replace(endless, data=(str(bench / "texts"),))
    assert plan_stages(folder, TINY, bf16=False)[-2].tokens == size
    named = msgspec.structs.replace(endless, data=("c4",))
    unknown = plan_stages(named, TINY, bf16=False)[-2]
    assert (unknown.tokens, unknown.operations, unknown.disk_bytes) == (None, 0, 0)


def test_every_stage_is_shown(bench: Path) -> None:
    """Also those whose tokens the data decide."""
    (bench / "chat.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 8)
    align = '[align]\ndata = "chat.jsonl"\nmax_steps = 7\n'
    evaluate = '[evaluate]\ntasks = ["perplexity:valid.jsonl"]\n'
    parts = ("[vocabulary]\nsize = 64\n", PRUNE, DISTILL, align, evaluate)
    recipe = recipe_of(bench, *parts)
    stages = plan_stages(recipe, TINY, bf16=False)
    assert tuple(one.name for one in stages) == stage_names(recipe)
    steps = {one.name: one.steps for one in stages if one.steps is not None}
    assert steps == {"distill": 1024 // (4 * LENGTH), "align": 7}
    lines = plan_table(stages, operations_per_second=1e9).splitlines()
    assert lines[0].split() == ["stage", "steps", "tokens", "operations", "memory", "disk", "time"]
    assert [line.split()[:2] for line in lines if line.startswith("distill")] == [["distill", "8"]]
    assert "without what has no time here" in lines[-1]


def test_ids_of_a_large_vocabulary_take_four_bytes(bench: Path) -> None:
    recipe = msgspec.structs.replace(recipe_of(bench, PRUNE), max_tokens=1000)
    large = msgspec.structs.replace(TINY, vocab_size=128_256)
    sizes = [plan_stages(recipe, spec, bf16=False)[0].disk_bytes for spec in (TINY, large)]
    assert sizes == [2000, 4000]


def test_what_one_process_does_is_not_divided() -> None:
    stages = [StagePlan("importance", 1, 36e12, 0, alone=True), StagePlan("distill", 1, 72e12, 0)]
    lines = plan_table(stages, operations_per_second=1e9, processes=8).splitlines()
    assert [line.split("  ")[-1] for line in lines[1:3]] == ["10.0 h", "2.5 h"]
    assert lines[3].startswith("together 12.5 h at")


def test_the_search_counts_all_finalists(bench: Path) -> None:
    search = stages_of(SEARCH, DISTILL, bench=bench)["search"]
    scored, trained = 6 * 4 * 32, 2 * 2 * 2 * 4 * 32
    assert search.tokens == scored + trained


@pytest.mark.parametrize(("name", "parameters"), [("width", 4.51e9), ("depth", 4.54e9)])
def test_the_papers_job(name: str, parameters: float) -> None:
    """94 B tokens on 256 H100s in bf16."""
    recipe = read_recipe(RECIPES / f"llama-3.1-minitron-4b-{name}.toml")
    assert recipe.distill is not None
    training = recipe.training(recipe.distill, bf16=True)
    training.check(256)
    assert training.steps == 9960
    assert round(training.warmup * training.steps) == 40
    spec = DecoderSpec.from_hf(LLAMA_8B)
    stages = {one.name: one for one in plan_stages(recipe, spec, bf16=True, sharded_over=8)}
    distill = stages["distill"]
    assert distill.tokens == pytest.approx(94e9, rel=1e-3)
    assert stages["prune"].disk_bytes / 4 == pytest.approx(parameters, rel=0.01)
    # 8 N D with checkpointing for the student, 2 N D for the teacher, and attention.
    plain = 94e9 * (8 * parameters + 2 * 8.03e9)
    assert plain < distill.operations < 1.4 * plain
    assert distill.memory_bytes < 80e9, "what a GPU has"
    table = plan_table(list(stages.values()), operations_per_second=400e12, processes=256)
    assert "93,9" in table
    assert "6 min" in table, "importance, which one process scores"
    assert "at 400 TFLOP/s on each of 256 processes" in table


def test_refused_before_anything_is_loaded(bench: Path) -> None:
    cheap = SEARCH.replace("parameters = 0.7", "min_tokens_per_second = 1e12")
    with pytest.raises(DoesNotFit, match=r"no shape down to 40% .* exceeds: .*speed"):
        preflight(recipe_of(bench, cheap, DISTILL), TINY)
    with pytest.raises(BadInput, match="cannot be divided over 5 processes"):
        preflight(recipe_of(bench, PRUNE, DISTILL), TINY, processes=5)
    align = "[align]\ndata = 'chat.jsonl'\nbatch_size = 8\n"
    with pytest.raises(BadInput, match="batch_size 8 cannot be divided over 3 processes"):
        preflight(recipe_of(bench, PRUNE, align), TINY, processes=3)


def test_the_plan_counts_fewer_experts(bench: Path) -> None:
    spec = DecoderSpec.from_hf(tiny_config("qwen3-moe").to_dict())
    recipe = recipe_of(bench, PRUNE.replace("hidden_size = 48", "num_experts = 3"), DISTILL)
    preflight(recipe, spec)
    student = student_spec(recipe, spec)
    assert student is not None
    assert {one.experts for one in student.mixtures} == {3}
    [pruned] = [one for one in plan_stages(recipe, spec, bf16=False) if one.name == "prune"]
    assert pruned.disk_bytes == 4 * student.parameters
    preflight(recipe_of(bench, SEARCH, DISTILL), spec)


_TABLES = {
    "prune": "[prune]\nnum_key_value_heads = 1\nnum_attention_heads = 2\n",
    "block": '[importance]\nlayers = "block"\n[prune]\nnum_hidden_layers = 3\n',
    "search": SEARCH.replace("samples = 16", 'layers = "block"').replace("0.7", "0.3"),
    "draft": "[draft]\nnum_hidden_layers = 3\n",
    "puzzle": "[target]\nparameters = 0.7\n[puzzle]\n",
}


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("gemma4", "prune", "cannot prune num_key_value_heads of gemma4_text: layers share"),
        ("gemma4", "block", 'layers = "block" cannot remove 4 layers of gemma4_text: layers 1, 2'),
        ("gemma4", "search", 'layers = "block" cannot remove 4 layers of gemma4_text'),
        ("gemma3n", "draft", r"\[draft\] cannot take a few layers of gemma3n_text: some read"),
        ("gemma3n", "puzzle", "cannot replace layers of gemma3n_text: its layers read keys"),
        ("gemma4-dense", "puzzle", "layers of gemma4_text: its layers have heads or inputs of"),
        ("nemotron-h", "puzzle", "layers of nemotron_h: each of its layers is an attention, a"),
        ("falcon-h1", "puzzle", "layers of falcon_h1: its attention is parallel to Mamba-2"),
    ],
)
def test_only_what_is_impossible_is_refused(
    bench: Path, name: str, table: str, message: str
) -> None:
    spec = DecoderSpec.from_hf(tiny_config(name).to_dict())
    with pytest.raises(BadInput, match=message):
        preflight(recipe_of(bench, _TABLES[table], DISTILL), spec)


@pytest.mark.parametrize("name", ["gemma3n", "gemma4", "gemma4-dense", "nemotron-h", "falcon-h1"])
def test_what_is_possible_is_planned(bench: Path, name: str) -> None:
    spec = DecoderSpec.from_hf(tiny_config(name, max_position_embeddings=256).to_dict())
    qad = "[qad]\ntokens = 64\nbatch_size = 2\nmicro_batch = 2\n"
    preflight(recipe_of(bench, "[prune]\nintermediate_size = 64\n", DISTILL, qad), spec)
    preflight(recipe_of(bench, SEARCH, DISTILL), spec)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "1 s"), (89.5, "90 s"), (600, "10 min"), (7200, "2.0 h"), (9 * 86400, "9 days")],
)
def test_times(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_dry_run_reads_no_weights(
    bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    config = json.loads((bench / "teacher" / "config.json").read_text())
    config |= {"max_position_embeddings": 512}
    (teacher / "config.json").write_text(json.dumps(config))
    words = [str(teacher), "--data", str(bench / "train.jsonl"), "--shape", "num_hidden_layers=3"]
    options = ["--dry-run", "--world-size", "8", "--tflops", "2"]
    assert main([*words, "-o", str(tmp_path / "student"), *options]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("stage ")
    assert "distill " in shown
    assert "at 2 TFLOP/s on each of 8 processes" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--parameters", "0.7"], "no training text: give --data FILE"),
        (["--data", "d.jsonl"], "give --parameters, --max-memory, --min-tok-s or --max-ttft"),
        (["--data", "d.jsonl", "--parameters", "0.7", "--tflops", "3"], "belong to --dry-run"),
        (
            ["--data", "d.jsonl", "--parameters", "0.7", "--dry-run", "--tflops", "-1"],
            "expected a number above 0",
        ),
        (["--data", "no.jsonl", "--parameters", "0.7"], "no such data file: no.jsonl"),
    ],
)
def test_errors_name_the_option(
    bench: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main([str(bench / "teacher"), *options, "-o", "x"]) == 2
    assert message in capsys.readouterr().err


def test_the_plan_of_puzzle_and_of_a_draft(bench: Path) -> None:
    settings = (
        "[target]\nparameters = 0.6\n[importance]\nsamples = 4\n"
        "[puzzle]\nmlp_ratios = [0.5, 0.0]\ntokens = 6400\nscore_rows = 2\n"
    )
    recipe = recipe_of(bench, settings, DISTILL)
    stages = {one.name: one for one in plan_stages(recipe, TINY, bf16=False)}
    assert list(stages) == [
        *("data", "importance", "puzzle-library", "puzzle-scores", "puzzle", "distill")
    ]
    layers, hidden, ffn = TINY.num_hidden_layers, TINY.hidden_size, TINY.intermediate_size
    narrow = layers * 3 * hidden * (ffn // 2)
    assert stages["puzzle-library"].disk_bytes == 12 * narrow
    assert stages["puzzle-library"].tokens == 6400
    # Every half of a layer left out, and the narrow MLP; and the teacher itself.
    assert stages["puzzle-scores"].tokens == (1 + 3 * layers) * 2 * LENGTH
    assert stages["distill"].memory_bytes < 20 * TINY.parameters + 4 * TINY.parameters
    draft = recipe_of(bench, "[draft]\nnum_hidden_layers = 2\n", DISTILL)
    stages = {one.name: one for one in plan_stages(draft, TINY, bf16=False)}
    assert list(stages) == ["data", "draft", "distill", "acceptance"]
    # Held-out rows are read twice, and four tokens drafted at each of eight places; two drafts.
    assert stages["acceptance"].tokens == 2 * 64 * (2 * LENGTH + 8 * 4)


def test_a_draft_trains_neither_embedding_nor_head(bench: Path) -> None:
    draft = stages_of("[draft]\nnum_hidden_layers = 3\n", DISTILL, bench=bench)
    whole = stages_of(PRUNE.replace("hidden_size = 48", ""), DISTILL, bench=bench)
    table, tied = TINY.vocab_size * TINY.hidden_size, TINY.tie_word_embeddings
    frozen = table if tied else 2 * table
    one, other = draft["distill"], whole["distill"]
    assert other.operations - one.operations == 1024 * 2 * table
    assert other.memory_bytes - one.memory_bytes == 12 * frozen, "no gradient, no moments"
    assert other.disk_bytes - one.disk_bytes == 2 * 8 * frozen


def test_what_the_teacher_writes(bench: Path) -> None:
    written = "[synthesize]\ndocuments = 30\nmax_new_tokens = 20\n"
    stages = stages_of(written, PRUNE, DISTILL, bench=bench)
    assert list(stages)[:2] == ["synthesize", "data"]
    assert stages["synthesize"].tokens == 600
    text = stages_of(PRUNE, DISTILL, bench=bench)["data"].tokens
    assert text == (bench / "train.jsonl").stat().st_size // 4
    assert stages["data"].tokens == text + 600
    (bench / "questions.jsonl").write_text('{"prompt": "Why?"}\n' * 7)
    asked = f'{written}prompts = "questions.jsonl"\n'
    assert stages_of(asked, PRUNE, DISTILL, bench=bench)["synthesize"].tokens == 7 * 20
