"""`edge-devices`: every verb, its exit codes, and JSON that reads back into the records."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgelm.bundle import Manifest, write_manifest
from edgelm.devices.cli import main
from edgelm.devices.detection.machine import Machine
from edgelm.devices.doctor import CheckResult
from edgelm.devices.planner.models.smaller_models import SmallerModel
from edgelm.devices.planner.plan import choices, plan
from edgelm.devices.profile import ENVIRONMENT, Profile
from edgelm.planning import Plan, PlanRequest
from tests.core.spec.test_decoder import CONFIG
from tests.devices.checks.recorded import PLAIN, manifest
from tests.devices.planner.test_plan import LARGE, ORIN, llama
from tests.devices.test_profile import DELIVERED

Run = Callable[..., tuple[int, str, str]]

OK = CheckResult("cpu.threads", "ok", "all 8 cores can be used", "", "")
ERROR = CheckResult("cuda.driver", "error", "the driver is too old", "CUDA refuses", "install 580")


class Answer(msgspec.Struct):
    """What `plan --json` prints."""

    works: bool
    choices: list[Plan]
    shapes: list[SmallerModel]


@pytest.fixture(autouse=True)
def no_profiles_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with nothing but the configuration of a decoder of eight billion parameters."""
    config = CONFIG | llama(32, 4096, 14336, 32, 8, 128_256) | {"max_position_embeddings": 131_072}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_list(run: Run) -> None:
    code, out, _ = run("list")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == [
        *("target", "device", "memory", "bandwidth", "engine", "also", "called")
    ]
    assert [line.split()[0] for line in lines[1:]] == sorted(DELIVERED)
    laptop = next(line for line in lines if line.startswith("rtx-4060-laptop "))
    assert re.split("  +", laptop) == [
        *("rtx-4060-laptop", "GeForce RTX 4060 Laptop GPU", "8 GB", "256 GB/s"),
        *("tensorrt-rtx", "laptop-rtx-4060"),
    ]
    assert not any(line.endswith(" ") for line in lines)


def test_list_as_json(run: Run) -> None:
    code, out, _ = run("list", "--json")
    assert code == 0
    assert {one["name"] for one in json.loads(out)} == set(DELIVERED)
    profiles = msgspec.json.decode(out, type=list[Profile])
    assert {one.name: one for one in profiles} == DELIVERED


@pytest.mark.parametrize("name", ["jetson-thor-t5000", "jetson-thor"])
def test_show(run: Run, name: str) -> None:
    code, out, _ = run("show", name)
    assert code == 0
    assert out.startswith("jetson-thor-t5000: Jetson Thor T5000 (AGX Thor devkit)\n")
    assert "\nSources:\n" in out


def test_show_lists_memory_of_the_runtime_and_what_was_measured(run: Run) -> None:
    _, out, _ = run("show", "rtx-4060-laptop")
    assert "  runtime      0.4 GB  [edgelm, ASSUMED]\n" in out
    assert "L2 cache       32 MB  [spec]\n" in out
    assert "measured fp16  29.6 T operations/s  [matmul, measured]\n" in out


def test_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "edgelm.devices.cli", "show", "jetson-thor"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("jetson-thor-t5000: ")
    bad = subprocess.run([*command[:-1], "gpu9"], capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stdout) == (2, "")


def test_show_as_json(run: Run) -> None:
    code, out, _ = run("show", "jetson-thor", "--json")
    assert code == 0
    assert msgspec.json.decode(out, type=Profile) == DELIVERED["jetson-thor-t5000"]


def test_own_profiles_are_listed(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "devices" / "profiles" / "cpu.toml").read_text()
    (tmp_path / "toaster.toml").write_text(text.replace('name = "cpu"', 'name = "toaster"'))
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    assert run("show", "toaster")[0] == 0
    assert "\ntoaster " in run("list")[1]
    (tmp_path / "toaster.toml").write_text("name = 1")
    code, out, err = run("list")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {tmp_path / 'toaster.toml'}: ")


def test_plan_that_works(run: Run, model: Path) -> None:
    code, out, err = run("plan", model, "--target", "rtx-4060-laptop")
    assert (code, err) == (0, "")
    ranked, table = out.split("\n\n")
    assert ranked.splitlines()[0].split()[:3] == ["precision", "cache", "weights"]
    assert ranked.splitlines()[1].startswith("int4 ")
    assert "fits, bound by memory bandwidth" in ranked.splitlines()[1]
    assert table.startswith("target          rtx-4060-laptop, default (tensorrt-rtx, standard di")
    assert "precision       int4, fp16 cache, context 4,096" in table
    assert "verdict         fits" in table


def test_plan_that_does_not_fit_says_what_would(run: Run, model: Path) -> None:
    code, out, _ = run("plan", model, "--target", "rtx-4060-laptop", "--max-memory", "6GB")
    assert code == 1
    assert "verdict         does not fit" in out
    assert re.search(r"^missing         \d+(\.\d+)? [MG]B of memory$", out, re.MULTILINE)
    assert "try             --context " in out
    assert "Pruned versions that would meet the request:" in out
    axes = sorted(line.split()[0] for line in out.splitlines()[-3:])
    assert axes == ["depth", "depth", "feed-forward"]


def test_plan_of_what_nothing_helps(run: Run, model: Path) -> None:
    code, out, _ = run("plan", model, "--target", "cpu", "--max-memory", "1MB")
    assert code == 1
    assert "try             a smaller model" in out
    assert out.endswith("No pruned version of this model would meet the request either.\n")


def test_a_plan_that_fails_says_why_in_json_too(run: Run, model: Path) -> None:
    words = ("plan", model, "--target", "rtx-4060-laptop", "--max-memory", "6GB")
    _, text, _ = run(*words)
    code, out, _ = run(*words, "--json")
    assert code == 1
    best = json.loads(out)["choices"][0]
    assert f"missing         {best['missing'][0]}" in text
    assert f"try             {best['advice'][0]}" in text


def test_plan_as_json(run: Run, model: Path) -> None:
    code, out, _ = run(
        "plan", model, "--target", "jetson-orin-nano", "--max-memory", "6GB", "--json"
    )
    answer = msgspec.json.decode(out, type=Answer, strict=True)
    assert code == 1
    assert not answer.works
    request = PlanRequest(max_memory_bytes=6_000_000_000)
    best, *others = choices(LARGE, ORIN, request)
    chosen = msgspec.structs.replace(request, precision=best.precision, kv=best.kv)
    assert answer.choices == [plan(LARGE, ORIN, chosen), *others]
    assert [shape.plan.works for shape in answer.shapes] == [True, True, True]
    fields = json.loads(out)["choices"][0]
    assert fields["target"] == "jetson-orin-nano-8gb-super"
    assert fields["decode_ms"].keys() == {"value", "low", "high"}
    assert fields.keys() == set(Plan.__struct_fields__)


def test_plan_as_json_that_works(run: Run, model: Path) -> None:
    code, out, _ = run("plan", model, "--target", "h100", "--json")
    answer = msgspec.json.decode(out, type=Answer)
    assert (code, answer.works, answer.shapes) == (0, True, [])


def test_options_reach_the_plan(run: Run, model: Path) -> None:
    options = ["--precision", "int8", "--kv", "fp16", "--context", "2048", "--prompt", "100"]
    options += ["--batch", "2", "--engine", "onnxruntime-cuda", "--power-mode", "MODE_30W"]
    options += ["--min-tok-s", "1.5", "--max-memory", "20GB", "--json"]
    code, out, _ = run("plan", model, "--target", "jetson-orin", *options)
    (chosen,) = msgspec.json.decode(out, type=Answer).choices
    assert code == 0
    assert (chosen.precision, chosen.kv, chosen.context) == ("int8", "fp16", 2048)
    assert (chosen.prompt, chosen.batch, chosen.budget_bytes) == (100, 2, 20 * 10**9)
    assert (chosen.engine, chosen.power_mode) == ("onnxruntime-cuda", "MODE_30W")
    assert chosen.fast_enough
    code, out, _ = run("plan", model, "--target", "jetson-orin", *options, "--min-tok-s", "500")
    assert code == 1
    assert not msgspec.json.decode(out, type=Answer).choices[0].fast_enough


def test_plan_of_a_bundle_reads_its_manifest(run: Run, tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest())
    code, out, _ = run("plan", tmp_path, "--target", "cpu", "--json")
    assert code == 0
    first = msgspec.json.decode(out, type=Answer).choices[0]
    assert first.parameters == manifest().spec.parameters


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "rtx-4060-lap"], "unknown target 'rtx-4060-lap'; did you mean rtx-4060-laptop"),
        (["plan", "MODEL", "--target", "gpu9"], "unknown target 'gpu9'; "),
        (["plan", "/no/model", "--target", "cpu"], "no such file or folder: /no/model"),
        (["plan", "MODEL", "--target", "cpu", "--precision", "int3"], "cpu has no int3 with onn"),
        (["plan", "MODEL", "--target", "cpu", "--precision", "fp8"], "cpu has no fp8 with onnxr"),
        (["plan", "MODEL", "--target", "jetson-orin", "--precision", "fp32"], "has no fp32 with t"),
        (
            ["plan", "MODEL", "--target", "cpu", "--kv", "bf16"],
            "cpu has no bf16 cache with onnxruntime; it has fp",
        ),
        (["plan", "MODEL", "--target", "cpu", "--engine", "x"], "cpu has no engine 'x'; it has on"),
        (["plan", "MODEL", "--target", "cpu", "--power-mode", "x"], "cpu has no power mode 'x'"),
        (["plan", "MODEL", "--target", "cpu", "--min-tok-s", "0"], "0 tokens/s requested; expecte"),
        (["plan", "MODEL", "--target", "cpu", "--min-tok-s", "-3"], "-3 tokens/s requested; expec"),
        (["plan", "MODEL", "--target", "cpu", "--min-tok-s", "nan"], "nan tokens/s requested; exp"),
        (["plan", "MODEL", "--target", "cpu", "--max-memory", "0B"], "a memory budget of 0 bytes"),
        (["plan", "MODEL", "--target", "cpu", "--context", "999999"], "context 999999 is not poss"),
        (["doctor", "MODEL"], "is not a bundle (it has no bundle.json)"),
        (["fit", "a.csv", "--predict", "b.csv", "-o", "c.toml"], "--predict fits nothing, so"),
    ],
    ids=[
        "show",
        "target",
        "no-such-model",
        "precision",
        "not-here",
        "not-on-orin",
        "cache",
        "engine",
        "power-mode",
        "no-rate",
        "negative-rate",
        "nan-rate",
        "no-memory",
        "context",
        "no-bundle",
        "predict-writes",
    ],
)
def test_bad_input_exits_two(run: Run, model: Path, arguments: list[str], message: str) -> None:
    code, out, err = run(*(model if argument == "MODEL" else argument for argument in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["forget"], "invalid choice: 'forget'"),
        (["show"], "the following arguments are required: name"),
        (["plan", "model"], "the following arguments are required: --target"),
        (["plan", "model", "--target", "cpu", "--context", "0"], "'0' is not a whole number above"),
        (["plan", "model", "--target", "cpu", "--batch", "two"], "'two' is not a whole number"),
        (["plan", "model", "--target", "cpu", "--kv", "int2"], "invalid choice: 'int2'"),
        (["plan", "model", "--target", "cpu", "--max-memory", "much"], "'much' is not a size"),
        (["plan", "model", "--target", "cpu", "--min-tok-s", "fast"], "invalid float value: 'fast"),
        (["fit"], "the following arguments are required: rows"),
    ],
    ids=[
        "nothing",
        "verb",
        "show",
        "no-target",
        "context",
        "batch",
        "cache",
        "memory",
        "rate",
        "fit",
    ],
)
def test_bad_option_exits_two(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_detect_this_machine(run: Run) -> None:
    code, out, _ = run("detect")
    assert code == 0
    assert out.startswith("system ")
    assert "\nprofile " in out


def test_detect_as_json(run: Run) -> None:
    code, out, _ = run("detect", "--json")
    assert code == 0
    machine = msgspec.json.decode(out, type=Machine)
    assert "edgelm" in machine.packages
    assert machine.profile is None or machine.profile in DELIVERED


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the doctor was asked to look at; it finds what `results` holds."""
    seen: dict[str, Any] = {"results": (OK,)}

    def examine(machine: Machine, manifest: Manifest | None) -> tuple[CheckResult, ...]:
        seen.update(machine=machine, manifest=manifest)
        found: tuple[CheckResult, ...] = seen["results"]
        return found

    monkeypatch.setattr("edgelm.devices.detection.detect.detect", lambda: PLAIN)
    monkeypatch.setattr("edgelm.devices.doctor.examine", examine)
    return seen


def test_doctor_finds_nothing(run: Run, examined: dict[str, Any]) -> None:
    assert run("doctor") == (0, "1 check passed\n", "")
    assert (examined["machine"], examined["manifest"]) == (PLAIN, None)


def test_doctor_finds_an_error(run: Run, examined: dict[str, Any]) -> None:
    examined["results"] = (OK, ERROR)
    code, out, _ = run("doctor")
    assert code == 1
    assert out.startswith("error: the driver is too old\n")
    code, out, _ = run("doctor", "--json")
    assert code == 1
    assert msgspec.json.decode(out, type=list[CheckResult]) == [OK, ERROR]


def test_doctor_reads_the_bundle(run: Run, examined: dict[str, Any], tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest())
    assert run("doctor", tmp_path)[0] == 0
    assert examined["manifest"] == manifest()


def test_doctor_of_this_machine(run: Run) -> None:
    code, out, _ = run("doctor", "--json")
    results = msgspec.json.decode(out, type=list[CheckResult])
    assert "disk.space" in {result.check for result in results}
    assert code == int(any(result.severity == "error" for result in results))


def test_fit_hands_over_its_files(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []
    for name in ("fit_rows", "predict_rows"):
        monkeypatch.setattr(
            f"edgelm.devices.published.run.{name}",
            lambda *given, name=name: calls.append((name, given)),
        )
    rows, other, folder = Path("rows.csv"), Path("other.csv"), Path("report")
    assert run("fit", rows, "-o", other, "--report", folder)[0] == 0
    assert run("fit", rows, "--predict", other)[0] == 0
    assert calls == [("fit_rows", (rows, other, folder)), ("predict_rows", (rows, other, None))]


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        (
            [],
            ["list", "show", "plan", "detect", "doctor", "calibrate", "fit", "exit codes: 0 done"],
        ),
        (["list"], ["--json"]),
        (["show"], ["a target or one of its aliases", "--json"]),
        (["plan"], ["--target", "--min-tok-s X", "--max-memory SIZE", "--power-mode MODE"]),
        (["detect"], ["--json"]),
        (["doctor"], ["also check that this bundle can run here", "--json"]),
        (["calibrate"], ["-o DIR", "--threads N"]),
        (["fit"], ["CSV file of published measurements", "--predict CSV", "--report DIR"]),
    ],
    ids=["all", "list", "show", "plan", "detect", "doctor", "calibrate", "fit"],
)
def test_help_fits_a_screen(
    capsys: pytest.CaptureFixture[str], verb: list[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*verb, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in words)
    assert len(text.splitlines()) <= 40
