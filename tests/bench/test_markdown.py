"""report.md: its parts in order, and every figure of the table from a hand-made report."""

from pathlib import Path

import pytest

from edgelm.bench.contenders import Absent
from edgelm.bench.markdown import engines, markdown, table
from edgelm.bench.report import Report
from edgelm.bundle import Manifest, read_manifest
from tests.bench.records import report, samples

ABSENT = (Absent("llama.cpp", "not installed: no environment; edge-bench --setup-peers"),)
HEAD = (
    "| engine | MB | bits/weight | KL | top-1 | pp100 t/s | tg4 t/s | tg4@d50 t/s | of bound "
    "| peak MB | load ms | KV | context |"
)
SPEEDS = "1000.0 (600–1800) | 100.0 (60–100) | 50.0 (50–50) | 1% / 1% | 50 | 20 | fp32 | 154 |"


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


@pytest.fixture(scope="module")
def made(manifest: Manifest) -> Report:
    return report(manifest, samples("peer 2", figures=None), absent=ABSENT)


def test_table(made: Report, manifest: Manifest) -> None:
    bits = f"{8e6 / manifest.spec.parameters:.2f}"
    assert table(made) == [
        HEAD,
        "| --- |" + " ---: |" * 12,
        f"| edgelm int8 tiny | 1.0 | {bits} | 0.0123 | 95.6% | {SPEEDS}",
        f"| peer 2 | 1.0 | {bits} | – | – | {SPEEDS}",
    ]


def test_page(made: Report) -> None:
    lines = markdown(made).splitlines()
    assert lines[0] == f"# {made.source}: edgelm beside its peers"
    assert lines[2].startswith("Test CPU, 4 cores, 2 threads, 8 GiB, reads 10 GB/s; Linux 6 x86_64")
    assert lines[4] == "`edge-bench tiny`"
    assert lines[6:10] == table(made)
    assert lines[11:15] == [
        "Not measured:",
        "",
        "- llama.cpp: not installed: no environment; edge-bench --setup-peers",
        "",
    ]
    assert "medians of 3 rounds" in lines[15]
    assert "2,048 tokens of gate.jsonl" in lines[15]
    assert lines[-1] == ("Options: edgelm int8 tiny: 1.2, threads 2; peer 2: 1.2, threads 2")


def test_without_absentees_there_is_no_list_of_them(manifest: Manifest) -> None:
    assert "Not measured" not in markdown(report(manifest))


def test_every_engine_keeps_its_row(manifest: Manifest) -> None:
    made = report(manifest, samples("one"), samples("two"))
    assert list(engines(made)) == ["edgelm int8 tiny", "one", "two"]
    assert all(list(tests) == ["pp100", "tg4", "tg4@d50"] for tests in engines(made).values())
