"""The study of Puzzle's arms: recipes that differ in one thing, and a table of what came out."""

import json
from pathlib import Path

import msgspec
import torch

from bench.studies.compress.puzzle_arms import _parser, compare, recipe_of, table
from edgelm.checkpoint.student import StageRecord, StudentRecord, write_student_record
from edgelm.compress.model import load_model
from edgelm.compress.recipe import Recipe
from tests.checkpoints.models import tiny_config
from tests.checkpoints.tiny_chat import save_tiny_chat

SHAPE = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def recipe(folder: Path, arm: str, ratio: str) -> Recipe:
    words = ["run", str(folder), "--data", "d", "--held-out", "h", "--out", str(folder)]
    options = ["--arm", arm, "--ratio", ratio, "--tokens", "64k", "--before", "16k"]
    return recipe_of(_parser().parse_args([*words, *options]))


def test_arms_differ_in_what_finds_the_shape(tmp_path: Path) -> None:
    tiny_config("llama", max_position_embeddings=2048).save_pretrained(tmp_path)
    search, puzzle = (recipe(tmp_path, arm, "0.7") for arm in ("search", "puzzle"))
    assert search.search
    assert puzzle.puzzle
    assert msgspec.structs.replace(search, search=None) == msgspec.structs.replace(
        puzzle, puzzle=None
    )
    rates = [one.target.min_tokens_per_second for one in (search, recipe(tmp_path, "search", "1"))]
    assert rates[0] is not None
    assert rates[1] is not None
    assert abs(rates[0] * 0.7 / rates[1] - 1) < 1e-9


def test_the_table(tmp_path: Path) -> None:
    distilled = StageRecord("distill", {}, 64_000, 60.0, {"held_out_divergence": 0.25})
    layers = [{"attention": False}, {}, {"intermediate_size": 0}, {"intermediate_size": 48}]
    cut, speed = {"held_out_divergence": 1.5}, {"tokens_per_second": 120.0}
    puzzle = [("puzzle-library", 16_000, {}), ("puzzle", 0, cut | speed | {"layers": layers})]
    search = [("search", 12_000, speed), ("prune", 0, cut)]
    for name, stages in (
        ("puzzle-0.5-64000", puzzle),
        ("search-0.5-64000", search),
        ("search-0.5-8000", search),
        ("search-0.7-64000", search),
    ):
        records = [StageRecord(one, {}, tokens, 30.0, figures) for one, tokens, figures in stages]
        record = StudentRecord("t", "", 10, 2_000_000, SHAPE, SHAPE, (*records, distilled))
        (tmp_path / name).mkdir()
        write_student_record(tmp_path / name, record)
    (tmp_path / "run").mkdir()
    lines = table(tmp_path).splitlines()
    assert len(lines) == 6
    assert lines[2] == (
        "| ×0.7 | search | 4 layers, hidden 64, MLP 96, 4 heads | 2.0 M | 120.0 | 1.500 | 0.250 "
        "| 12,000 | 64,000 | 2 |"
    )
    # Of one ratio, the shorter runs come first, and arms of the same tokens beside each other.
    assert [line.split(" | ")[1] for line in lines[3:]] == ["search", "puzzle", "search"]
    assert "| ×0.5 | puzzle | 3 of 4 attend, MLP 0 to 96 (mean 60) |" in lines[4]
    assert "| 16,000 | 64,000 |" in lines[4]


def test_pairs_are_compared_on_the_same_rows(tmp_path: Path) -> None:
    teacher = save_tiny_chat(tmp_path / "teacher")
    text = tmp_path / "text.jsonl"
    lines = [f"The miller waits until level {i} has dropped below the wheel." for i in range(20)]
    text.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    for name, factor in (("puzzle-0.5-64", 1.0), ("search-0.5-64", -2.0), ("search-0.7-64", 1.0)):
        folder = save_tiny_chat(tmp_path / "runs" / name)
        student = load_model(folder)
        with torch.no_grad():
            student.model.layers[1].mlp.down_proj.weight.mul_(factor)
        student.save_pretrained(folder)
        write_student_record(folder, StudentRecord("t", "", 10, 10, SHAPE, SHAPE, ()))
    rows = compare(tmp_path / "runs", str(teacher), str(text), 32, 4).splitlines()
    assert rows[0].startswith("| decode time | tokens | arm | KL on 4 rows of 32 |")
    # Two students are the teacher itself; one without a pair has no difference.
    assert rows[2] == "| ×0.7 | 64 | search | 0.000 ± 0.000 | 100.0% |  |"
    assert rows[3] == "| ×0.5 | 64 | puzzle | 0.000 ± 0.000 | 100.0% |  |"
    kl, _, gap = (cell.strip() for cell in rows[4].split("|")[4:7])
    assert float(kl.split()[0]) > 0.01
    assert gap == f"-{kl} (-100%)"
