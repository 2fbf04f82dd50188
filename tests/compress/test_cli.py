"""The command line: what options mean, what is refused, what is printed."""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from edgelm.checkpoint.student import read_student_record
from edgelm.compress.cli import default_recipe, export_command, main, parser
from edgelm.compress.recipe import read_recipe
from edgelm.export.cli import parser as export_parser
from tests.checkpoints.models import save_tiny
from tests.compress.recipes import DISTILL, EVALUATE, PRUNE, QAD, TEACHER, write_recipe

MODEL = ("model", "-o", "out", "--data", "train.jsonl")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments, "--print-recipe"]) == 0
    return capsys.readouterr().out


def test_help_ends_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: edge-compress")
    assert "edge-compress recipe.toml -o student/" in shown
    assert "exit codes: 0 done, 2 bad input" in shown


def test_help_needs_no_torch() -> None:
    code = (
        "import sys, edgelm.compress.cli as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'accelerate')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    "options",
    [
        ("--parameters", "0.5"),
        ("--target", "jetson-orin-nano", "--min-tok-s", "30", "--max-memory", "2GB"),
        ("--max-ttft", "300", "--context", "1024", "--precision", "int4"),
        ("--shape", "num_hidden_layers=3, hidden_size=48", "--tokens", "3M"),
        ("--parameters", "1e6", "--evaluate", "kl:v.jsonl", "--evaluate", "perplexity:v.jsonl"),
    ],
    ids=" ".join,
)
def test_a_printed_recipe_reads_back(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: tuple[str, ...]
) -> None:
    path = tmp_path / "recipe.toml"
    text = printed(capsys, *MODEL, *options)
    path.write_text(text)
    recipe = read_recipe(path)
    wanted = default_recipe(parser().parse_args([*MODEL, *options]))
    assert recipe.teacher == "model"
    assert recipe.data == ("train.jsonl",)
    for name, value in wanted["target"].items():
        assert getattr(recipe.target, name) == value
    assert recipe.distill
    assert recipe.distill.tokens == wanted["distill"]["tokens"]
    assert (recipe.search is None) == ("search" not in wanted)
    assert (
        list(recipe.evaluate.tasks if recipe.evaluate else [])
        == wanted.get("evaluate", {"tasks": []})["tasks"]
    )
    assert printed(capsys, str(path), "-o", "out") == text


def options(*arguments: str) -> argparse.Namespace:
    return parser().parse_args([*MODEL, *arguments])


def test_options_by_hand() -> None:
    recipe = default_recipe(
        options("--min-tok-s", "30", "--max-memory", "1.5GB", "--max-ttft", "250", "--tokens", "2M")
    )
    assert recipe == {
        "teacher": "model",
        "data": ["train.jsonl"],
        "target": {
            "name": "cpu",
            "precision": "auto",
            "max_memory_bytes": 1_500_000_000,
            "min_tokens_per_second": 30.0,
            "max_first_token_ms": 250.0,
        },
        "distill": {"tokens": 2_000_000},
        "search": {},
        "evaluate": {"tasks": []},
    }
    shaped = default_recipe(options("--shape", "hidden_size=48", "--tokens", "100_000"[:3]))
    assert shaped["prune"] == {"hidden_size": 48}
    assert shaped["distill"] == {"tokens": 100}
    assert "search" not in shaped


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (MODEL, "the budget is missing: give --parameters"),
        (("model", "-o", "out", "--parameters", "0.5"), "no training text: give --data FILE"),
        ((*MODEL, "--shape", "3"), "--shape '3': expected e.g. num_hidden_layers=26"),
        ((*MODEL, "--shape", "hidden_size=-4"), "--shape 'hidden_size=-4': expected"),
        ((*MODEL, "--shape", "width=48"), "--shape: object contains unknown field `width`"),
        ((*MODEL, "--parameters", "-1"), "--parameters: expected `float` > 0.0"),
        ((*MODEL, "--min-tok-s", "nan"), "--min-tok-s: expected `float`"),
        (
            (*MODEL, "--shape", "num_hidden_layers=0"),
            "--shape num_hidden_layers: expected `int` >= 1",
        ),
        (
            (*MODEL, "--shape", "merge_pruned_heads=1"),
            "--shape merge_pruned_heads: expected `bool`, got `int`",
        ),
        (("none.toml", "-o", "out"), "cannot read the recipe none.toml: No such file"),
        (
            ("none.toml", "-o", "out", "--tokens", "3M"),
            "--tokens cannot be combined with a recipe; set it in none.toml",
        ),
        (
            ("none.toml", "-o", "out", "--min-tok-s", "3"),
            "--min-tok-s cannot be combined with a recipe",
        ),
        (("none.toml", "-o", "out", "--data", "x"), "--data cannot be combined with a recipe"),
        ((*MODEL, "--parameters", "0.5"), "no such file or folder: model"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out
    assert not list(tmp_path.iterdir()), "nothing is written before the recipe is known to be good"


@pytest.mark.parametrize(("option", "size"), [("--tokens", "many"), ("--max-memory", "2 apples")])
def test_bad_sizes_name_their_option(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    size: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main([*MODEL, "--parameters", "0.5", option, size])
    assert stopped.value.code == 2
    assert f"argument {option}: {size!r} is not a size; expected" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_no_output_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["model"])
    assert stopped.value.code == 2
    assert "the following arguments are required: -o" in capsys.readouterr().err


def test_after_qad_the_export_is_to_its_grid(bench: Path, tmp_path: Path) -> None:
    recipe = read_recipe(write_recipe(bench, TEACHER, QAD, name="grid"))
    tied = "--target cpu --precision int4 --method rtn --group-size 32 --layer lm_head=int8"
    assert export_command(recipe, bench / "teacher") == (
        f"edge-export {bench / 'teacher'} {tied} -o bundle/"
    )
    save_tiny("llama-untied", tmp_path / "untied")
    untied = export_command(recipe, tmp_path / "untied")
    assert untied.endswith("--layer lm_head=int8 --layer embedding=int8 -o bundle/")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("name = 'cpu'", "cpu --precision int4 --method rtn --group-size 64"),
        ("name = 'jetson-orin'", "jetson-orin --precision int4 --method rtn"),
        (
            "name = 'jetson-orin'\nengine = 'tensorrt-10.3'",
            "jetson-orin --engine tensorrt-10.3 --precision int4 --method rtn",
        ),
    ],
    ids=["cpu", "orin", "older"],
)
def test_after_qad_the_export_has_the_targets_defaults(
    target: str, words: str, bench: Path
) -> None:
    recipe = read_recipe(write_recipe(bench, TEACHER, f"[target]\n{target}\n[qad]\n", name="own"))
    assert export_command(recipe, bench / "teacher") == (
        f"edge-export {bench / 'teacher'} --target {words} --layer lm_head=int8 -o bundle/"
    )


def test_a_draft_is_exported_into_the_bundle_of_its_target(bench: Path) -> None:
    draft = "[draft]\nnum_hidden_layers = 2\n"
    recipe = read_recipe(write_recipe(bench, TEACHER, draft, name="draft"))
    command = export_command(recipe, bench / "teacher")
    assert command == f"edge-export {bench / 'teacher'} --draft-for bundle/"
    recipe = read_recipe(write_recipe(bench, TEACHER, draft, QAD, name="draft-qad"))
    assert export_command(recipe, bench / "teacher") == (
        f"{command} --precision int4 --method rtn --group-size 32 --layer lm_head=int8"
    ), "the grid that QAD trained on, as of any student"
    assert export_parser().parse_args(shlex.split(command)[1:]).draft_for == Path("bundle")


def test_a_recipe_from_end_to_end(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(bench, TEACHER, PRUNE, DISTILL, EVALUATE, name="cli")
    output = tmp_path / "student"
    assert main([str(recipe), "-o", str(output), "--run", str(tmp_path / "stages")]) == 0
    captured = capsys.readouterr()
    record = read_student_record(output)
    assert record
    share = record.parameters / record.teacher_parameters
    lines = captured.out.splitlines()
    assert lines[0] == f"{output}: 0.1 M parameters, {share:.0%} of the teacher's"
    perplexity = record.evaluation["perplexity:valid.jsonl"]
    shown = ", ".join(f"{who} {figure.text}" for who, figure in perplexity.items())
    ratio = perplexity["student"].ratio_text
    assert ratio.endswith("of the teacher's")
    assert f"  perplexity:valid.jsonl: {shown} ({ratio})" in lines[1:]
    assert lines[-1] == f"next: edge-export {output} --target cpu -o bundle/"
    assert (tmp_path / "stages" / "summary.html").is_file()
    assert main([str(recipe), "-o", str(output), "--run", str(tmp_path / "stages")]) == 0
    again = capsys.readouterr()
    assert again.out == captured.out
    assert again.err.count("unchanged, skipped") == len(record.stages)
