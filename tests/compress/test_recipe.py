"""Recipes: what is refused and by which words, what paths mean, what is left out."""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edgelm.compress.alignment.settings import Alignment, Dpo, Sft
from edgelm.compress.pruning.shape import Shape
from edgelm.compress.recipe import Recipe, read_recipe, recipe_toml
from edgelm.errors import BadInput
from edgelm.quantize.precision import Int4, Int8
from edgelm.spec.decoder import DecoderSpec
from tests.checkpoints.models import tiny_config

LEAST = 'teacher = "t"\ndata = ["d.jsonl"]\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{LEAST}epochs = 3\n[distill]\n", "unknown field `epochs`"),
        (f"{LEAST}[distill]\ntoken = 3\n", r"unknown field `token` - at `\$\.distill`"),
        (f"{LEAST}[distill.cache]\nsizes = 3\n", r"`sizes` - at `\$\.distill\.cache`"),
        (f"{LEAST}[target]\ndevice = 'cpu'\n", r"unknown field `device` - at `\$\.target`"),
        (
            f"{LEAST}[distill]\ntokens = 'many'\n",
            r"Expected `int`, got `str` - at `\$\.distill.tok",
        ),
        (f"{LEAST}[qad]\nprecision = 'int3'\n", r"'int3' - at `\$\.qad\.precision`"),
        ("data = ['d.jsonl']\n[distill]\n", "missing required field `teacher`"),
        ("teacher = t\n", "Invalid value"),
        ("teacher = 't'\nteacher = 'u'\n", "Cannot overwrite a value"),
    ],
)
def test_names_file_and_field(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(BadInput, match=message) as raised:
        read_recipe(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot read the recipe .*none\.toml: No such file"):
        read_recipe(tmp_path / "none.toml")
    with pytest.raises(BadInput, match="Is a directory"):
        read_recipe(tmp_path)
    (tmp_path / "latin.toml").write_bytes('teacher = "ü"\n'.encode("latin-1"))
    with pytest.raises(BadInput, match=r"latin\.toml: .*can't decode byte 0xfc"):
        read_recipe(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{LEAST}[target]\nparameters = 0.5\n[search]\n[prune]\n", "remove one of them"),
        (
            f"{LEAST}[target]\nparameters = 1.5\n[search]\n",
            "parameters = 1.5 is a number of parameters, since it is above 1, .* a share",
        ),
        (f"{LEAST}[search]\n", r"\[search\] needs a budget: give \[target\] parameters"),
        (f"{LEAST}[target]\ncontext = 512\n[search]\n", "needs a budget"),
        (
            'teacher = "t"\n[distill]\n',
            r"no data: set `data = \[\.\.\.\]`, or add a \[synthesize\]",
        ),
        (f"{LEAST}[align]\n", r"\[align\] needs `data`, a JSONL file of conversations"),
        (f"{LEAST}[correct]\n[vocabulary]\n", "produces no student: it needs"),
        (
            f"{LEAST}[target]\nparameters = 0.5\n[search]\n[distill]\nlayer_map = [[0, 0]]\n",
            "layer_map names layers of one student, .* set hidden_states = true",
        ),
        (
            f"{LEAST}[distill]\ntokens = 1000\nmilestones = [500, 2000]\n",
            r"milestones: 2,000 tokens are never reached, since tokens = 1,000; remove it",
        ),
        (
            f"{LEAST}[distill]\nhidden_states = true\nlayer_map = [[0, 0]]\n",
            "hidden_states is the paper's layer map, and layer_map another one; remove one",
        ),
        (
            f"{LEAST}[distill]\nhidden_states = true\n[distill.cache]\n",
            r"hidden_states compares .* which \[distill.cache\] does not run; remove one of them",
        ),
        (
            f"{LEAST}[distill]\nlayer_map = [[0, 0]]\ncross_entropy = 1.0\n",
            "layer_map compares .* which cross_entropy = 1 does not run; remove one of them",
        ),
        (
            f"{LEAST}[distill]\ncross_entropy = 1.0\n[distill.cache]\n",
            r"predictions of \[distill.cache\] are not read; remove one of them",
        ),
        (
            f"{LEAST}[distill]\nloss = 'jsd'\n[distill.cache]\n",
            r'loss = "jsd" at temperature 1 needs a live teacher: .* remove \[distill.cache\]',
        ),
        (
            f"{LEAST}[distill]\ntemperature = 2.0\n[distill.cache]\n",
            "at temperature 2 needs a live teacher",
        ),
        (
            f"{LEAST}[distill]\non_policy = 0.5\n[distill.cache]\n",
            "on_policy needs a live teacher",
        ),
        (
            f"{LEAST}[importance]\nlayer_task = 'last_word:l.jsonl'\n[distill]\n",
            'layer_task is not used with layers = "block_influence", .* set layers = "loss"',
        ),
        (
            f"{LEAST}[importance]\nlayer_samples = 4\n[distill]\n",
            "layer_samples is not used with layers",
        ),
        (
            f"{LEAST}[importance]\nlayers = 'loss'\nlayer_task = 'kl:v.jsonl'\n[distill]\n",
            "layer_task: kl compares a student with its teacher",
        ),
        (
            f"{LEAST}max_tokens = 500\n[distill]\n",
            "max_tokens = 500 makes no row of sequence_length = 512 tokens; raise it",
        ),
        (f"{LEAST}[align]\ndata = 'd'\nbeta = 0.2\n", r"beta belongs to method = .dpo.; remove it"),
        (f"{LEAST}[align]\ndata = 'd'\nmax_length = 1\n", "max_length is 1, expected 2 tokens"),
    ],
)
def test_stages_that_contradict_each_other(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_recipe(written(tmp_path, text))


@pytest.mark.parametrize(
    ("table", "old", "new"),
    [
        ("importance", 'tokens = "mean"', "tokens is now called sequence_reduction"),
        ("importance", 'over_samples = "l2"', "over_samples is now called batch_reduction"),
        ("importance", 'layers = "influence"', '"influence" is now "block_influence"'),
        ("prune", "fold_heads = true", "fold_heads is now called merge_pruned_heads"),
        ("search", "scored = 8", "scored is now called candidates"),
        ("search", "rounds = 2", "rounds is now called kd_rounds"),
        ("search", "least = 0.5", "least is now called min_ratio"),
        ("search", "round_tokens = 512", "round_tokens is now round_steps"),
        ("distill", "sequence_length = 8", "sequence_length is now .* top of the recipe; move it"),
        ("distill", "seed = 1", "seed is now seed, at the top of the recipe; move it"),
        ("distill", "bf16 = false", 'bf16 is now arithmetic = "auto"'),
    ],
)
def test_renamed_fields_are_named(tmp_path: Path, table: str, old: str, new: str) -> None:
    with pytest.raises(BadInput, match=rf"recipe\.toml: \[{table}\] .*{new}"):
        read_recipe(written(tmp_path, f"{LEAST}[{table}]\n{old}\n"))


@pytest.mark.parametrize(
    "limit",
    ["parameters", "max_memory_bytes", "min_tokens_per_second", "max_first_token_ms"],
)
def test_any_limit_is_a_budget(tmp_path: Path, limit: str) -> None:
    path = written(tmp_path, f"{LEAST}[search]\n[target]\n{limit} = 1\n")
    budget = read_recipe(path).target.budget
    found = {
        "parameters": budget.parameters,
        "max_memory_bytes": budget.request.max_memory_bytes,
        "min_tokens_per_second": budget.request.min_tokens_per_second,
        "max_first_token_ms": budget.first_token_ms,
    }
    assert found == {name: 1 if name == limit else None for name in found}


def test_paths_are_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder = tmp_path / "project"
    for name in ("teacher", "texts"):
        (folder / name).mkdir(parents=True)
    for name in ("d.jsonl", "v.jsonl", "chat.jsonl", "q.jsonl"):
        (folder / name).touch()
    text = """
        teacher = "teacher"
        data = ["d.jsonl", "texts", "wikitext:train", "/absolute.jsonl"]
        held_out = "v.jsonl"
        [synthesize]
        prompts = "q.jsonl"
        [align]
        data = "chat.jsonl"
        [evaluate]
        tasks = ["perplexity:v.jsonl", "lm-eval:arc_easy", "kl"]
    """
    recipe = read_recipe(Path(os.path.relpath(written(folder, text))))
    assert Path(recipe.teacher).samefile(folder / "teacher")
    assert Path(recipe.data[0]).samefile(folder / "d.jsonl")
    assert Path(recipe.data[1]).samefile(folder / "texts")
    assert recipe.data[2:] == ("wikitext:train", "/absolute.jsonl"), "not ours to resolve"
    assert recipe.held_out
    assert Path(recipe.held_out).samefile(folder / "v.jsonl")
    assert recipe.synthesize
    assert recipe.synthesize.prompts
    assert Path(recipe.synthesize.prompts).samefile(folder / "q.jsonl")
    assert recipe.align
    assert Path(recipe.align.data).samefile(folder / "chat.jsonl")
    assert recipe.evaluate
    kind, _, name = recipe.evaluate.tasks[0].partition(":")
    assert kind == "perplexity"
    assert Path(name).samefile(folder / "v.jsonl")
    assert recipe.evaluate.tasks[1:] == ("lm-eval:arc_easy", "kl")


def test_what_is_left_out(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, f"{LEAST}[distill]\n"))
    assert recipe.target.name == "cpu"
    assert not recipe.target_limits
    assert (recipe.sequence_length, recipe.dtype, recipe.seed) == (512, "bfloat16", 0)
    assert recipe.distill
    assert (recipe.distill.tokens, recipe.distill.loss) == (2_000_000, "forward-kl")
    assert recipe.distill.cache is None
    assert (recipe.importance.sequence_reduction, recipe.importance.batch_reduction) == (
        "mean",
        "l2",
    )
    others = ("search", "prune", "qad", "align", "evaluate", "synthesize", "vocabulary", "correct")
    assert [getattr(recipe, name) for name in others] == [None] * len(others)


@pytest.mark.parametrize(
    ("tables", "rate"),
    [
        ("[distill]\n", 1e-4),
        ("[distill]\nlearning_rate = 1e-4\n", 2e-5),
        ("[qad]\n", 1e-4),
        ("[distill]\nlearning_rate = 1e-4\n[correct]\nlearning_rate = 3e-4\n", 3e-4),
    ],
)
def test_the_teachers_rate_is_a_fifth_of_distillations(
    tmp_path: Path, tables: str, rate: float
) -> None:
    if "[correct]" not in tables:
        tables += "[correct]\n"
    assert read_recipe(written(tmp_path, LEAST + tables)).correction_rate == pytest.approx(rate)


def test_every_training_has_the_same_schedule_fields(tmp_path: Path) -> None:
    fields = (
        "gradient_checkpointing = true\nwarmup = 0.1\nfinal_learning_rate = 1e-6\n"
        "checkpoint_steps = 7\ncompile = true\ngradient_clip = 0.5\n"
    )
    text = LEAST + "".join(f"[{name}]\n{fields}" for name in ("correct", "distill", "qad"))
    recipe = read_recipe(written(tmp_path, text))
    for table in (recipe.correct, recipe.distill, recipe.qad):
        assert table is not None
        assert (table.warmup, table.checkpoint_steps, table.compile) == (0.1, 7, True)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("", Sft(seed=5)),
        ("method = 'dpo'\n", Dpo(seed=5)),
        ("method = 'dpo'\nbeta = 0.3\nmax_steps = 4\n", Dpo(beta=0.3, max_steps=4, seed=5)),
        (
            "learning_rate = 1e-5\nbatch_size = 2\nmax_length = 64\nwarmup = 0.2\nepochs = 2\n",
            Sft(learning_rate=1e-5, batch_size=2, max_length=64, warmup=0.2, epochs=2.0, seed=5),
        ),
    ],
)
def test_alignment_has_the_methods_own_defaults(
    tmp_path: Path, fields: str, expected: Alignment
) -> None:
    text = f"{LEAST}seed = 5\n[align]\ndata = 'chat.jsonl'\n{fields}"
    align = read_recipe(written(tmp_path, text)).align
    assert align is not None
    assert align.request(5) == expected


def test_precisions_are_what_the_engine_supports(tmp_path: Path) -> None:
    def precisions(target: str, qad: str = "") -> tuple[Int4 | Int8, Int4 | Int8]:
        text = f"{LEAST}[target]\nname = '{target}'\n[qad]\n{qad}"
        return read_recipe(written(tmp_path, text)).qad_precisions

    assert precisions("cpu") == (Int4(64), Int8(64))
    assert precisions("cpu", "symmetric = true") == (Int4(64, symmetric=True), Int8(64))
    assert precisions("jetson-orin-nano") == (Int4(64, symmetric=True), Int8(32))
    orin = "jetson-orin-nano"
    with pytest.raises(BadInput, match=f"TensorRT, the engine of {orin}, has no zero points"):
        precisions(orin, "symmetric = false")
    with pytest.raises(BadInput, match="has int8 with one scale per output channel only"):
        precisions(orin, "group_size = 64")
    with pytest.raises(BadInput, match="has int4 in groups of 64, 128"):
        precisions(orin, "group_size = 32\nhead = 'int4'")
    assert precisions(orin, "group_size = 128\nhead = 'int4'")[1] == Int4(128, symmetric=True)


def test_an_asked_shape_replaces_only_what_it_names(tmp_path: Path) -> None:
    path = written(tmp_path, f"{LEAST}[prune]\nhidden_size = 48\nnum_attention_heads = 2\n")
    prune = read_recipe(path).prune
    assert prune
    spec = DecoderSpec.from_hf(tiny_config("llama").to_dict())
    assert prune.shape(spec) == Shape(4, 48, 96, 2, 2)


@pytest.mark.parametrize(
    "end", ["layer_map = [[-1, -1], [1, 2]]", '[distill.cache]\nkind = "top-k"\n']
)
def test_written_as_toml_and_read_back(tmp_path: Path, end: str) -> None:
    text = f"""{LEAST}
        held_out = 'a "quoted" \\ name'
        [target]
        parameters = 0.6
        [vocabulary]
        [prune]
        num_hidden_layers = 2
        [distill]
        learning_rate = 1e-05
        milestones = [1_000_000, 2_000_000]
        compile = true
        {end}
        [evaluate]
        tasks = ["lm-eval:größe"]
    """
    recipe = read_recipe(written(tmp_path, text))
    assert read_recipe(written(tmp_path, recipe_toml(recipe))) == recipe


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (f"{LEAST}sequence_length = 1\n[distill]\n", "sequence_length"),
        (f"{LEAST}seed = -1\n[distill]\n", "seed"),
        (f"{LEAST}max_tokens = -5\n[distill]\n", "max_tokens"),
        (f"{LEAST}[distill]\nbatch_size = 0\n", "distill.batch_size"),
        (f"{LEAST}[distill]\ntokens = {10**18}\n", "distill.tokens"),
        (f"{LEAST}[distill]\nlearning_rate = nan\n", "distill.learning_rate"),
        (f"{LEAST}[distill]\nwarmup = 1.5\n", "distill.warmup"),
        (f"{LEAST}[distill]\ntemperature = inf\n", "distill.temperature"),
        (f"{LEAST}[distill.cache]\nsize = 0\n", "distill.cache.size"),
        (f"{LEAST}[qad]\nmicro_batch = -1\n", "qad.micro_batch"),
        (f"{LEAST}[importance]\nlayer_samples = -4\n[distill]\n", "importance.layer_samples"),
        (f"{LEAST}[synthesize]\ntop_p = 0\n[distill]\n", "synthesize.top_p"),
        (f"{LEAST}[target]\nparameters = 0\n[search]\n", "target.parameters"),
        (f"{LEAST}[target]\nparameters = 0.5\n[search]\nmin_ratio = 2\n", "search.min_ratio"),
        (f"{LEAST}[prune]\nhidden_size = 0\n", "prune.hidden_size"),
        (f"{LEAST}[evaluate]\nlimit = 0\n[distill]\n", "evaluate.limit"),
    ],
)
def test_numbers_out_of_range_are_named(tmp_path: Path, text: str, field: str) -> None:
    with pytest.raises(BadInput, match=rf"- at `\$\.{field}`") as raised:
        read_recipe(written(tmp_path, text))
    assert "recipe.toml: Expected" in str(raised.value)


def test_a_name_too_long_for_a_file_is_left_as_it_is(tmp_path: Path) -> None:
    teacher = "x" * 5_000
    text = f'teacher = "{teacher}"\ndata = ["d.jsonl"]\n[distill]\n'
    assert read_recipe(written(tmp_path, text)).teacher == teacher


def unbounded(kind: msgspec.inspect.Type, path: str) -> Iterator[str]:
    """Fields whose numbers have no upper bound; tomllib reads integers of any size."""
    match kind:
        case msgspec.inspect.IntType() | msgspec.inspect.FloatType():
            if kind.le is None and kind.lt is None:
                yield path
        case msgspec.inspect.StructType() | msgspec.inspect.DataclassType():
            for field in kind.fields:
                yield from unbounded(field.type, f"{path}.{field.name}")
        case msgspec.inspect.UnionType():
            for one in kind.types:
                yield from unbounded(one, path)
        case msgspec.inspect.VarTupleType() | msgspec.inspect.ListType():
            yield from unbounded(kind.item_type, f"{path}[]")
        case msgspec.inspect.TupleType():
            for one in kind.item_types:
                yield from unbounded(one, f"{path}[]")
        case msgspec.inspect.DictType():
            yield from unbounded(kind.value_type, f"{path}.*")


def test_every_number_of_a_recipe_has_a_bound() -> None:
    assert list(unbounded(msgspec.inspect.type_info(Recipe), "recipe")) == []


def test_a_layer_map_of_huge_numbers(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    stage = f"[distill]\ntokens = 9\nlayer_map = [[1{'0' * 400}, 1]]\n"
    path.write_text(f'teacher = "t"\ndata = ["d"]\n{stage}')
    with pytest.raises(BadInput, match="layer_map"):
        read_recipe(path)
