"""What would stop a stage after hours is refused before a model is loaded."""

import json
from importlib import util
from pathlib import Path

import pytest

from edgelm.checkpoint.source import read_spec
from edgelm.compress import needed_inputs
from edgelm.compress.model import spec_of
from edgelm.compress.needed_inputs import check_template
from edgelm.compress.preflight import preflight, student_spec
from edgelm.compress.recipe import read_recipe
from edgelm.compress.recipe.tables import Prune
from edgelm.errors import BadInput, DoesNotFit, MissingPackage
from edgelm.spec.prunable import lasting_layers
from tests.checkpoints.models import tiny_model
from tests.compress.recipes import CORRECT, DISTILL, EVALUATE, PRUNE, TEACHER, write_recipe
from tests.compress.tokenizers import tiny_fast_tokenizer

PUZZLE = "[target]\nparameters = 0.7\n[puzzle]\n"


def checked(bench: Path, *parts: str, head: str = TEACHER) -> None:
    recipe = read_recipe(write_recipe(bench, head, *parts, name="preflight"))
    preflight(recipe, read_spec(recipe.teacher))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((PRUNE, DISTILL, "layer_map = [[3, 3]]\n"), r"\[distill\] layer map 3:3: the student has"),
        ((DISTILL, "layer_map = [[3, 4]]\n"), r"\[distill\] layer map 3:4: .* the teacher 0 to 3"),
        (
            ("[draft]\nnum_hidden_layers = 2\n", DISTILL, "layer_map = [[2, 2]]\n"),
            "the student has layers 0 to 1",
        ),
        (
            (DISTILL, "[distill.cache]\nkind = 'top-k'\nsize = 321\n"),
            r"\[distill.cache\] size = 321: the vocabulary has 320 tokens",
        ),
        (
            ("[vocabulary]\nsize = 300\n", DISTILL, "[distill.cache]\nkind='top-k'\nsize = 310\n"),
            "the vocabulary has 300 tokens",
        ),
        (("[prune]\nlayers = [0, 4]\n",), r"layers = \[0, 4\]: expected layers to keep, .* 0 to 3"),
        (("[prune]\nlayers = [1, 0]\n",), "each once, in ascending order"),
        (
            ("[prune]\nlayers = [0]\nnum_hidden_layers = 2\n",),
            "layers names 1 layers, and num_hidden_layers is 2",
        ),
        ((PRUNE, "[qad]\ngroup_size = 48\n"), r"\[qad\] group size 48 is not one of"),
        (
            (DISTILL, "final_learning_rate = 4e-3\n"),
            r"\[distill\] final_learning_rate 0.004 is above the peak, learning_rate 0.003",
        ),
        (
            (CORRECT, "final_learning_rate = 7e-4\n", DISTILL),
            r"\[correct\] final_learning_rate 0.0007 is above the peak, learning_rate 0.0006",
        ),
        (
            (PRUNE, "[synthesize]\nmax_new_tokens = 128\n"),
            r"\[synthesize\] max_new_tokens = 128: the teacher's context is 128 tokens",
        ),
        (("student = 'gone'\n", DISTILL), "no such file or folder: .*gone"),
        ((PRUNE, "[align]\ndata = 'train.jsonl'\n"), r"train\.jsonl:1: no field `messages`"),
        (
            (PRUNE, "[align]\nmethod = 'dpo'\ndata = 'chat.jsonl'\n"),
            r"chat\.jsonl:1: no field `prompt`",
        ),
        (
            (PRUNE, "[evaluate]\ntasks = ['last_word:train.jsonl']\n"),
            r"train\.jsonl:1: expected a field `context`",
        ),
        ((PRUNE, "[evaluate]\ntasks = ['needle']\n"), "the context has 128 tokens, needle needs"),
    ],
)
def test_settings_that_a_stage_would_refuse(
    bench: Path, parts: tuple[str, ...], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        checked(bench, *parts)


def test_the_same_settings_within_their_limits(bench: Path) -> None:
    checked(bench, PRUNE, DISTILL, "layer_map = [[2, 3]]\n", EVALUATE)
    checked(bench, DISTILL, "[distill.cache]\nkind = 'top-k'\nsize = 320\n")
    checked(bench, "student = 'teacher'\n", DISTILL, "[align]\ndata = 'chat.jsonl'\n")


def test_rows_longer_than_the_teachers_context(bench: Path) -> None:
    head = TEACHER.replace("sequence_length = 32", "sequence_length = {}")
    checked(bench, PRUNE, head=head.format(128))
    with pytest.raises(BadInput, match="sequence_length = 129: the teacher's context is 128 token"):
        checked(bench, PRUNE, head=head.format(129))


@pytest.mark.parametrize("data", ['["train.jsonl"]', '["texts"]'])
def test_held_out_text_that_is_trained_on(bench: Path, tmp_path: Path, data: str) -> None:
    for name in ("train", "valid"):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{name}.jsonl").write_bytes((bench / f"{name}.jsonl").read_bytes())
    (tmp_path / "train.jsonl").write_bytes((bench / "train.jsonl").read_bytes())
    held_out = "train.jsonl" if "train" in data else "texts/valid.jsonl"
    head = TEACHER.replace('["train.jsonl"]', data).replace('"valid.jsonl"', f'"{held_out}"')
    head = head.replace('"teacher"', json.dumps(str(bench / "teacher")))
    with pytest.raises(BadInput, match=r"held_out: .*\.jsonl is in `data`, too"):
        checked(tmp_path, PRUNE, head=head)


@pytest.mark.parametrize(
    ("package", "parts", "message"),
    [
        ("trl", (PRUNE, "[align]\ndata = 'chat.jsonl'\n"), r"\[align\] needs trl: pip install"),
        ("scipy", (PUZZLE,), r"\[puzzle\] needs scipy: pip install 'edgelm\[compress\]'"),
        (
            "lm_eval",
            (PRUNE, "[evaluate]\ntasks = ['lm-eval:arc_easy']\n"),
            r"lm-evaluation-harness needs lm_eval: pip install 'edgelm\[evaluation\]'",
        ),
    ],
)
def test_a_package_that_a_late_stage_needs(
    bench: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    parts: tuple[str, ...],
    message: str,
) -> None:
    def without(name: str) -> object:
        return None if name == package else util.find_spec(name)

    monkeypatch.setattr(needed_inputs, "find_spec", without)
    with pytest.raises(MissingPackage, match=message):
        checked(bench, *parts)


def test_layers_that_every_student_keeps() -> None:
    """Refused before data and importance, not by the pruning after them."""
    spec = spec_of(tiny_model("gemma3n"))
    last = lasting_layers(spec)
    assert last
    kept = tuple(one for one in range(spec.num_hidden_layers) if one != last[0])
    with pytest.raises(BadInput, match=rf"layers leaves out {last[0]}, which every student"):
        Prune(layers=kept).shape(spec)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("[evaluate]\ntasks = ['rag']\n", "the task rag needs a chat template"),
        ("[synthesize]\nprompts = 'chat.jsonl'\n", r"\[synthesize\] prompts needs a chat template"),
        ("[evaluate]\ntasks = ['rag_choice']\n", None),
    ],
)
def test_a_tokenizer_without_a_chat_template(bench: Path, part: str, message: str | None) -> None:
    recipe = read_recipe(write_recipe(bench, TEACHER, PRUNE, part, name="template"))
    tokenizer = tiny_fast_tokenizer()
    check_template(recipe, tokenizer)
    tokenizer.chat_template = None
    if message is None:
        check_template(recipe, tokenizer)
        return
    with pytest.raises(BadInput, match=message):
        check_template(recipe, tokenizer)


def test_the_student_that_is_planned_for_is_the_one_that_is_trained(
    bench: Path, tmp_path: Path
) -> None:
    """Else the cost of training a small student would be that of its teacher."""
    config = json.loads((bench / "teacher" / "config.json").read_text()) | {"num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    text = f"student = {json.dumps(str(tmp_path))}\n"
    recipe = read_recipe(write_recipe(bench, TEACHER, text, DISTILL, name="planned"))
    student = student_spec(recipe, read_spec(recipe.teacher))
    assert student is not None
    assert student.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("parameters = 0.5", r"M parameters, limit 0\.\d M\. Prune more"),
        ("min_tokens_per_second = 1e7", "tokens/s predicted, 10,000,000 required"),
        ("max_memory_bytes = 1000000", "MB of memory"),
        ("max_first_token_ms = 1e-6", "first token 0 ms, limit 0 ms"),
    ],
)
def test_a_shape_beyond_the_budget(bench: Path, limit: str, message: str) -> None:
    """A limit that nothing looked at would be taken for one that is met."""
    with pytest.raises(DoesNotFit, match=rf"\[prune\]: the shape .* on cpu: .*{message}"):
        checked(bench, f"[target]\n{limit}\n", PRUNE)
    checked(bench, "[target]\nparameters = 0.95\nmin_tokens_per_second = 1.0\n", PRUNE)


@pytest.mark.parametrize(
    "shape", [PRUNE, "[search]\nmin_ratio = 0.75\n", "[puzzle]\nmlp_ratios = [0.75]\n"]
)
def test_a_budget_that_a_smaller_vocabulary_meets(bench: Path, shape: str) -> None:
    """How many tokens [vocabulary] keeps without a size is known when the data was read."""
    budget = "[target]\nmax_memory_bytes = {}\n"
    limit = least_memory(bench, shape)
    with pytest.raises(DoesNotFit, match="MB of memory"):
        checked(bench, budget.format(limit), shape)
    checked(bench, budget.format(limit), "[vocabulary]\nsize = 280\n", shape)
    checked(bench, budget.format(limit), "[vocabulary]\n", shape)
    with pytest.raises(DoesNotFit, match="MB of memory"):
        checked(bench, budget.format(limit), "[vocabulary]\nsize = 319\n", shape)


def least_memory(bench: Path, shape: str) -> int:
    """What the smallest student of these tables takes with 300 of the 320 tokens."""
    low, high = 1, 1 << 40
    while low < high:
        middle = (low + high) // 2
        try:
            text = f"[target]\nmax_memory_bytes = {middle}\n[vocabulary]\nsize = 300\n"
            checked(bench, text, shape)
            high = middle
        except DoesNotFit:
            low = middle + 1
    return low
