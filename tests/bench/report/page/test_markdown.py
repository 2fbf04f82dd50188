"""report.md: its parts in order, and every figure of the table from a hand-made report."""

from pathlib import Path

import pytest

from edgelm.bench.peers.engines import SkippedEngine
from edgelm.bench.report.page.markdown import markdown, table
from edgelm.bench.report.records import Report
from edgelm.bench.report.selection import engines
from edgelm.bench.report.verdict import verdict
from edgelm.bundle import Manifest, read_manifest
from edgelm.devices.sensors import Reader, Sampler
from tests.bench.records import WITH_GPU, on_gpu, report, samples, timed, watched

ABSENT = (SkippedEngine("llama.cpp", "not installed: no environment; edge-bench --setup-peers"),)
HEAD = (
    "| engine | MB | bits/weight | KL | top-1 | pp100 t/s | tg4 t/s | tg4@d50 t/s | of bound "
    "| peak MB | load ms | KV | context |"
)
SPEEDS = "1000.0 (600–1800) | 100.0 (60–100) | 50.0 | 1% / 1% | 50 | 20 | fp32 | 154 |"


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


def test_memory_of_a_gpu_has_a_column(manifest: Manifest) -> None:
    ours, shared = on_gpu("edgelm int4 tiny"), on_gpu("a Jetson", gpu_bytes=None)
    made = report(manifest, samples("peer"), shared, ours=ours, machine=WITH_GPU)
    head, _, *rows = table(made)
    assert "| peak MB | GPU MB | load ms |" in head
    cells = [row.split(" | ")[-5:-2] for row in rows]
    assert cells == [["50", "70", "20"], ["50", "–", "20"], ["50", "–", "20"]]


def test_page(made: Report) -> None:
    lines = markdown(made).splitlines()
    outcome = verdict(made)
    assert lines[0] == f"# {made.source}: edgelm report"
    assert lines[2] == outcome.headline
    assert lines[4].startswith("- **Fast enough? Yes.** 50 tokens/s at 50 tokens of context")
    assert [line.partition("?")[0] for line in lines[5:7]] == [
        "- **Good enough",
        "- **What limits it",
    ]
    assert lines[8] == outcome.noise
    assert lines[10:14] == table(made)
    assert lines[15:19] == [
        "Not measured:",
        "",
        "- llama.cpp: not installed: no environment; edge-bench --setup-peers",
        "",
    ]
    assert lines[19] == "## How it was measured"
    assert "Medians of 3 rounds" in lines[21]
    assert "2,048 tokens of gate.jsonl" in lines[21]
    assert lines[23].startswith(
        "Test CPU, 4 cores, 2 threads, 8 GiB, reads 10 GB/s; Linux 6 x86_64"
    )
    assert lines[25] == "`edge-bench tiny`"
    assert lines[29:31] == [
        "- edgelm int8 tiny: version 1.2, threads 2",
        "- peer 2: version 1.2, threads 2",
    ]
    assert lines[32] == "## Glossary"
    assert "- **pp100**: Prompt processing: 100 tokens at once, from an empty cache." in lines
    assert "- **tg4@d50**: Token generation: 4 tokens one by one, after 50 tokens." in lines


def test_a_bar_in_a_name_does_not_end_its_cell(manifest: Manifest) -> None:
    made = report(manifest, samples("a | b"))
    assert table(made)[-1].startswith("| a \\| b | 1.0 |")


def test_without_absentees_there_is_no_list_of_them(manifest: Manifest) -> None:
    assert "Not measured" not in markdown(report(manifest))


def test_every_engine_keeps_its_row(manifest: Manifest) -> None:
    made = report(manifest, samples("one"), samples("two"))
    assert list(engines(made)) == ["edgelm int8 tiny", "one", "two"]
    assert all(list(tests) == ["pp100", "tg4", "tg4@d50"] for tests in engines(made).values())


def test_energy_has_a_column_where_it_is_known(manifest: Manifest) -> None:
    ours = timed("edgelm int8 tiny")
    made = report(manifest, samples("peer"), ours=ours, sensors=watched())
    head, _, first, second = table(made)
    column = head.split(" | ").index("J/token")
    assert [line.split(" | ")[column] for line in (first, second)] == ["13.3 / –", "– / –"]
    text = markdown(made)
    assert "Energy is read from VDD_IN while tokens were generated." in text
    assert "- **J/token**: Energy per generated token, idle draw included" in text


def test_sensors_have_a_table_and_what_is_missing_a_line(manifest: Manifest) -> None:
    made = report(manifest, ours=timed("edgelm int8 tiny"), sensors=watched())
    lines = markdown(made).splitlines()
    at = lines.index("Sensors:")
    assert lines[at + 2 : at + 10] == [
        "| sensor | unit | min | median | max | energy J |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| VDD_IN | W | 10.0 | 10.0 | 10.0 | 500.0 |",
        "| tj <thermal> | °C | 40.0 | 65.0 | 90.0 | – |",
        "",
        "Throttling, warm-up included: none.",
        "",
        "Not read: GPU: no <driver>.",
    ]
    assert "INVALID" not in markdown(made)


def test_without_power_there_is_no_energy(manifest: Manifest) -> None:
    sensors = Sampler(
        [Reader("memory in use", "memory", "MB", "/proc/meminfo", lambda: 512.0)], clock=lambda: 0.0
    )
    sensors.sample()
    made = report(manifest, sensors=sensors)
    text = markdown(made)
    assert "| sensor | unit | min | median | max |\n" in text
    assert "| memory in use | MB | 512.0 | 512.0 | 512.0 |\n" in text
    assert "J/token" not in text
    assert "Throttling" not in text  # nothing watched for it
    assert "Not read" not in text


def test_sensors_that_saw_nothing_have_no_table(manifest: Manifest) -> None:
    text = markdown(report(manifest, sensors=Sampler([])))
    assert "Sensors" not in text
    assert "sensor |" not in text


def test_a_throttled_run_is_invalid_at_the_top(manifest: Manifest) -> None:
    sensors = watched(throttled=(18.0, 21.0))
    made = report(manifest, samples("peer"), ours=timed("edgelm int8 tiny"), sensors=sensors)
    lines = markdown(made).splitlines()
    assert lines[2] == (
        "> **INVALID**: the machine throttled while it was measured (cpu-throttle-alert 1×); hit: "
        "edgelm int8 tiny: pp100, tg4. Cool it or raise its power limit, and measure again."
    )
    assert "Throttling, warm-up included: cpu-throttle-alert 1×." in lines
