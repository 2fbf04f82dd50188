"""A pytest plugin for environments that only run bundles: `pytest -p tests.without_torch`.

It skips what needs a package that the runtime's extras do not install; other errors stay errors.
"""

import re
from collections.abc import Generator

import pytest

ABSENT = {"accelerate", "datasets", "gguf", "onnx", "onnx_ir", "safetensors", "torch", "yaml"}
ABSENT |= {"transformers", "vermin"}
_SKIPPED: set[str] = set()  # modules of tests, half imported, from which others import


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.failed and (name := _absent(str(report.longrepr))):
        _SKIPPED.add(collector.nodeid.removesuffix(".py").replace("/", "."))
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"needs {name}")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and (name := _absent(str(report.longrepr))):
        report.outcome, report.longrepr = "skipped", (str(item.path), 0, f"needs {name}")
    return report


def _absent(traceback: str) -> str | None:
    missing = re.findall(r"No module named '(\w+)", traceback)
    of_others = re.findall(r"cannot import name '\w+' from '([\w.]+)'", traceback)
    found = [*(ABSENT & set(missing)), *(_SKIPPED & set(of_others))]
    return found[0] if found else None
