"""Without an engine edgelm says what to install; with one, telemetry is off before it loads."""

import os
import subprocess
import sys
from pathlib import Path

BLOCKED = """\
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "onnxruntime":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
"""
LOAD = """\
import edgelm
from edgelm.errors import MissingPackage
try:
    edgelm.load(sys.argv[1])
except MissingPackage as error:
    print(error)
"""
RUN = """\
from edgelm.runtime.cli import main
sys.exit(main([sys.argv[1], "hello"]))
"""
SPY = """\
import os, sys
class Spy:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Spy())
import edgelm
edgelm.load(sys.argv[1]).close()
"""


def python(code: str, bundle: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: v for key, v in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    return subprocess.run(
        [sys.executable, "-c", code, str(bundle)],
        capture_output=True,
        text=True,
        env={**inherited, **environment},
    )


def test_load_names_the_extra(bundle: Path) -> None:
    done = python(BLOCKED + LOAD, bundle)
    assert done.returncode == 0, done.stderr
    assert "no engine installed" in done.stdout
    assert "pip install 'edgelm[cpu]'" in done.stdout


def test_a_damaged_bundle_is_found_without_an_engine(tmp_path: Path) -> None:
    done = python(BLOCKED + RUN, tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path} is not a bundle")


def test_the_command_line_exits_2(bundle: Path) -> None:
    done = python(BLOCKED + RUN, bundle)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no engine installed")
    assert "Traceback" not in done.stderr


def test_telemetry_is_off_before_onnxruntime_loads(bundle: Path) -> None:
    done = python(SPY, bundle)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["1"]


def test_a_user_s_own_setting_stays(bundle: Path) -> None:
    done = python(SPY, bundle, ORT_DISABLE_TELEMETRY="0")
    assert done.stdout.splitlines() == ["0"]


def test_runtime_needs_no_torch(bundle: Path) -> None:
    code = (
        "import sys, edgelm\n"
        "with edgelm.load(sys.argv[1]) as lm: lm.generate('hello', max_tokens=2)\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnx_ir', 'edgelm.export', 'edgelm.compress'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = python(code, bundle)
    assert done.stdout.strip() == "[]", done.stderr


def test_importing_changes_nothing(tmp_path: Path) -> None:
    code = (
        "import os, sys; before = dict(os.environ)\n"
        "from edgelm.runtime.engines.onnxruntime import ort, ort_cuda\n"
        "print(dict(os.environ) == before, 'onnxruntime' in sys.modules)"
    )
    done = python(code, tmp_path)
    assert done.stdout.split() == ["True", "False"], done.stderr
