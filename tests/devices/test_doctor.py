"""The doctor as a whole: every check is heard, whatever the machine refuses to say."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from edgelm.devices import doctor
from edgelm.devices.checks.context import Context
from edgelm.devices.checks.verdict import Verdict
from edgelm.devices.detection.machine import Jetson, Machine
from edgelm.devices.doctor import CheckResult, describe, examine, exit_code
from tests.devices.checks.recorded import (
    FOLDER,
    LAPTOP,
    ORIN_NANO,
    PLAIN,
    context,
    manifest,
    with_jetson,
    with_packages,
)

OK = CheckResult("cpu.threads", "ok", "all 8 cores can be used", "", "")
UNKNOWN = CheckResult(
    "disk.space", "unknown", "the check could not be made", "df: not there", "ask df yourself"
)
WARNING = CheckResult("jetson.clocks", "warning", "the clock floats", "short runs", "jetson_clocks")
ERROR = CheckResult("cuda.driver", "error", "the driver is too old", "CUDA refuses", "install 580")


def run(machine: Machine, root: Path, **more: object) -> dict[str, CheckResult]:
    here = context(machine, root, **more)  # type: ignore[arg-type]
    results = examine(here.machine, here.probes, here.manifest)
    return {result.check: result for result in results}


def test_healthy_machine(tmp_path: Path) -> None:
    df = "Filesystem\n/dev/sda 1 1 99999999 1% /\n"
    found = run(PLAIN, tmp_path, files={"/proc/swaps": "Filename\n"}, answers={"df": df})
    assert set(found) == {"disk.space", "cpu.threads", "cpu.instructions"}
    assert {result.severity for result in found.values()} == {"ok"}
    assert describe(tuple(found.values())) == "3 checks passed"


def test_a_jetson_with_the_usual_mistakes(tmp_path: Path) -> None:
    machine = with_packages(
        with_jetson(ORIN_NANO, l4t="36.4.7", power_mode="15W"),
        onnxruntime="1.32.0",
        onnxruntime_gpu="1.31.1",
    )
    files = {
        "/etc/nvpmodel.conf": "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n",
        f"{FOLDER}/capi/build_and_package_info.py": "cuda_version = '13.0'\n",
        "/proc/swaps": "Filename\n",
    }
    found = run(machine, tmp_path, files=files, answers={"find_spec": FOLDER})
    errors = {name for name, result in found.items() if result.severity == "error"}
    assert errors == {"onnxruntime.two-packages", "cuda.driver", "jetson.nvmap"}
    warnings = {name for name, result in found.items() if result.severity == "warning"}
    assert warnings == {"jetson.power-mode", "memory.swap-file"}
    assert exit_code(tuple(found.values())) == 1


@pytest.mark.parametrize("machine", [PLAIN, LAPTOP, ORIN_NANO], ids=["plain", "laptop", "jetson"])
@pytest.mark.parametrize("dialect", ["ort", "standard", "decomposed"])
def test_nothing_can_be_read(machine: Machine, dialect: str, tmp_path: Path) -> None:
    packages = with_packages(
        machine, onnxruntime="1.32.0", onnxruntime_gpu="1.31.1", torch="2.13", tensorrt="11.4.0"
    )
    found = run(packages, tmp_path, manifest=manifest(dialect))
    unread = {name for name, result in found.items() if result.severity == "unknown"}
    assert {"onnxruntime.import", "onnxruntime.telemetry", "disk.space"} <= unread
    assert all(found[name].why for name in unread)


def test_machine_of_which_nothing_is_known(tmp_path: Path) -> None:
    machine = msgspec.structs.replace(ORIN_NANO, gpus=(), jetson=Jetson("NVIDIA Jetson"))
    found = run(with_packages(machine, onnxruntime_gpu="1.31.1"), tmp_path)
    assert {"jetson.nvmap", "jetson.jetpack", "jetson.power-mode", "jetson.clocks"} <= {
        name for name, result in found.items() if result.severity == "unknown"
    }


def test_a_bundle_of_another_device_is_an_error_and_comes_first(tmp_path: Path) -> None:
    orin = manifest("decomposed", "jetson-orin-nano", compute_capabilities=(87,))
    found = run(PLAIN, tmp_path, manifest=orin)
    assert exit_code(tuple(found.values())) == 1
    text = describe(tuple(found.values()))
    assert text.startswith("error: this bundle is for Jetson Orin Nano 8GB Super (tensorrt, sm_87)")
    assert "tensorrt.dialect" not in found
    assert "memory.bundle" not in found


@pytest.mark.parametrize(
    ("failure", "why"),
    [
        (PermissionError(13, "Permission denied", "/proc/swaps"), "/proc/swaps: only root"),
        (ValueError("no number"), "ValueError: no number"),
        (KeyError("x"), "KeyError: 'x'"),
    ],
    ids=["file", "text", "ours"],
)
def test_a_check_that_fails_is_unknown(
    failure: Exception, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Context) -> Verdict | None:
        raise failure

    monkeypatch.setattr(doctor, "CHECKS", {"a.b": broken})
    (result,) = run(PLAIN, tmp_path).values()
    assert result.severity == "unknown"
    assert why in result.why


def test_every_problem_says_what_why_and_how(tmp_path: Path) -> None:
    machine = with_packages(ORIN_NANO, onnxruntime="1.32.0", onnxruntime_gpu="1.31.1")
    for result in run(machine, tmp_path, manifest=manifest("standard")).values():
        assert result.what
        assert bool(result.why) == (result.severity != "ok")
        if result.severity in ("error", "warning"):
            assert result.fix


@pytest.mark.parametrize(
    ("results", "code"),
    [((), 0), ((OK,), 0), ((WARNING, UNKNOWN), 0), ((OK, ERROR), 1)],
)
def test_exit_code(results: tuple[CheckResult, ...], code: int) -> None:
    assert exit_code(results) == code


def test_describe_puts_problems_first() -> None:
    assert describe((OK, UNKNOWN, WARNING, ERROR)) == (
        "error: the driver is too old\n"
        "  why:   CUDA refuses\n"
        "  fix:   install 580\n"
        "  check: cuda.driver\n"
        "\n"
        "warning: the clock floats\n"
        "  why:   short runs\n"
        "  fix:   jetson_clocks\n"
        "  check: jetson.clocks\n"
        "\n"
        "1 check passed, 1 could not be made:\n"
        "  disk.space: the check could not be made: df: not there\n"
        "    try: ask df yourself"
    )


def test_findings_are_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode([ERROR]), type=list[CheckResult]) == [ERROR]


def test_this_machine() -> None:
    found = examine(msgspec.structs.replace(PLAIN, system="Linux 6 x86_64"))
    assert {result.check for result in found} >= {"disk.space", "cpu.threads"}


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, edgelm.devices.doctor; "
        "print(sorted({'torch', 'onnxruntime', 'numpy', 'tensorrt', 'pynvml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
