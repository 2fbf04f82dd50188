"""Whether ONNX Runtime reports usage."""

from pathlib import Path

import msgspec
import pytest

from edgelm.devices.checks.context import Context
from edgelm.devices.checks.host.telemetry import telemetry
from tests.devices.checks.recorded import FOLDER, PLAIN, WHERE_IS_IT, context, with_packages

LIBRARY = f"{FOLDER}/capi/libonnxruntime.so.1.32.0"
BINDING = f"{FOLDER}/capi/onnxruntime_pybind11_state.cpython-311-x86_64-linux-gnu.so"
ENDPOINT = b"\0https://mobile.events.data.microsoft.com/OneCollector/1.0\0"
ORT = with_packages(PLAIN, onnxruntime="1.32.0")


def here(tmp_path: Path, files: dict[str, str | bytes], **environment: str) -> Context:
    return context(
        ORT, tmp_path, files=files, answers={WHERE_IS_IT: FOLDER}, environment=environment
    )


@pytest.mark.parametrize("library", [LIBRARY, BINDING])
def test_edgelm_switches_it_off(library: str, tmp_path: Path) -> None:
    verdict = telemetry(here(tmp_path, {library: ENDPOINT}))
    assert verdict
    assert verdict.severity == "ok"
    assert verdict.what == (
        "edgelm disables the telemetry of onnxruntime 1.32.0; for other programs: export "
        "ORT_DISABLE_TELEMETRY=1"
    )


@pytest.mark.parametrize("value", ["1", "true", "YES", " on "])
def test_switched_off_everywhere(value: str, tmp_path: Path) -> None:
    verdict = telemetry(here(tmp_path, {LIBRARY: ENDPOINT}, ORT_DISABLE_TELEMETRY=value))
    assert verdict
    assert verdict.severity == "ok"
    assert "disables" in verdict.what


@pytest.mark.parametrize("value", ["0", "", "false", "disabled"])
def test_switched_on(value: str, tmp_path: Path) -> None:
    verdict = telemetry(here(tmp_path, {LIBRARY: ENDPOINT}, ORT_DISABLE_TELEMETRY=value))
    assert verdict
    assert verdict.severity == "warning"
    assert verdict.what == (
        f"ORT_DISABLE_TELEMETRY is {value!r}: onnxruntime 1.32.0 reports usage to Microsoft"
    )
    assert verdict.fix == "export ORT_DISABLE_TELEMETRY=1"


def test_build_without_telemetry(tmp_path: Path) -> None:
    verdict = telemetry(here(tmp_path, {LIBRARY: b"code"}, ORT_DISABLE_TELEMETRY="0"))
    assert verdict
    assert verdict.severity == "ok"
    assert verdict.what == "onnxruntime 1.32.0 is built without telemetry"


def test_no_library(tmp_path: Path) -> None:
    verdict = telemetry(here(tmp_path, {f"{FOLDER}/__init__.py": ""}))
    assert verdict
    assert verdict.severity == "unknown"


def test_windows(tmp_path: Path) -> None:
    windows = msgspec.structs.replace(ORT, system="Windows 11 AMD64")
    verdict = telemetry(context(windows, tmp_path))
    assert verdict
    assert verdict.severity == "unknown"
    assert "ETW" in verdict.why


def test_not_installed(tmp_path: Path) -> None:
    assert telemetry(context(PLAIN, tmp_path)) is None
