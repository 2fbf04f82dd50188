"""report.html: one page that needs no other file, its verdict first."""

from pathlib import Path

import msgspec
import pytest

from edgelm.bench.peers.engines import SkippedEngine
from edgelm.bench.report.page.html import html
from edgelm.bench.report.records import Report
from edgelm.bench.report.statistics import Percentiles
from edgelm.bundle import read_manifest
from tests.bench.records import WITH_GPU, on_gpu, report, samples, timed, watched
from tests.pages.page_checks import Page, check_page, figures

PEERS = ("llama.cpp Q4_0", "a <b> & 'c'")


@pytest.fixture(scope="module")
def made(bundle: Path) -> Report:
    others = [samples(name, slower=2.0) for name in PEERS]
    absent = (SkippedEngine("onnxruntime-genai", "not <installed>"),)
    return report(read_manifest(bundle), *others, absent=absent)


@pytest.fixture(scope="module")
def page(made: Report) -> str:
    return html(made)


def test_it_stands_alone_and_everybody_can_read_it(page: str) -> None:
    check_page(page)


def test_the_verdict_comes_first(page: str) -> None:
    text = Page(page).text
    order = [
        "tokens/s at 50 tokens of context",
        "First token",
        "Fast enough? Yes.",
        "Good enough? Yes.",
        "What limits it?",
        "treat smaller differences as noise",
        "All figures",
        "Not measured",
        "Plots",
        "How it was measured",
        "Glossary",
    ]
    places = [text.index(one) for one in order]
    assert places == sorted(places)


def test_every_engine_and_test_is_named(made: Report, page: str) -> None:
    cells = set(Page(page).texts)
    assert {"edgelm int8 tiny", *PEERS} <= cells
    assert {"pp100 t/s", "tg4 t/s", "tg4@d50 t/s"} <= cells
    assert "onnxruntime-genai: not <installed>" in cells
    assert made.command in cells
    assert any("Test CPU" in text for text in cells)


def test_three_tiles(page: str) -> None:
    text = Page(page).text
    for tile in (
        "First token 100 ms after a prompt of 100 tokens",
        "Decoding 50 tokens/s at 50 tokens of context",
        "Memory 50 MB at the peak; the weights are 1 MB",
    ):
        assert tile in text


def test_memory_of_a_gpu_is_in_its_tile(bundle: Path) -> None:
    ours = on_gpu("edgelm int8 tiny")
    page = html(report(read_manifest(bundle), ours=ours, machine=WITH_GPU))
    assert "the weights are 1 MB; 70 MB more on the GPU" in Page(page).text


def test_names_are_escaped_everywhere(page: str) -> None:
    assert "<b>" not in page
    assert page.count("a &lt;b&gt; &amp; ") >= 5


def test_four_plots_in_order(page: str) -> None:
    assert list(figures(page)) == [
        "Speed against quality",
        "Decoding speed by context",
        "Prompt of 100 tokens",
        "Peak resident memory",
    ]


def test_an_engine_has_one_color_in_every_plot(made: Report) -> None:
    """One without a figure of quality keeps its place."""
    results = tuple(
        msgspec.structs.replace(one, kl=None) if one.engine == PEERS[0] else one
        for one in made.results
    )
    page = html(msgspec.structs.replace(made, results=results))
    for title in ("Speed against quality", "Decoding speed by context"):
        keys = {
            "".join(one.itertext()).strip(): [part.get("class") for part in one.iter("path")]
            for one in figures(page)[title].iter("li")
        }
        assert keys[PEERS[1]] == ["mark s2"]
        assert (PEERS[0] in keys) == title.startswith("Decoding")


def test_the_same_report_gives_the_same_bytes(made: Report, page: str) -> None:
    assert html(made) == page


def test_our_rows_stand_out(page: str) -> None:
    assert page.count('<tr class="own">') == 1


def test_the_table_sorts_by_numbers(page: str) -> None:
    checked = Page(page)
    assert {"class": "sortable"} in checked.all("table")
    values = [one["data-value"] for one in checked.all("td") if "data-value" in one]
    assert len(values) == 3 * 11
    assert [float(value) for value in values[4:7]] == [1000.0, 100.0, 50.0]


def test_a_single_round_has_no_brackets(made: Report) -> None:
    alone = Percentiles.from_samples([401.2])
    results = tuple(msgspec.structs.replace(r, tokens_per_second=alone) for r in made.results)
    page = html(msgspec.structs.replace(made, results=results, rounds=1))
    assert "(401" not in page
    assert ">401.2<" in page
    assert "Single round" in page


def test_outliers_are_marked(made: Report) -> None:
    apart = Percentiles.from_samples([50.0, 51.0, 50.0, 49.0, 20.0])
    results = tuple(msgspec.structs.replace(r, tokens_per_second=apart) for r in made.results)
    page = html(msgspec.structs.replace(made, results=results, rounds=5))
    note = "far from the other rounds: 20.0 tokens/s"
    assert f'<abbr title="{note}">50.0 (32–51) †</abbr>' in page
    paths = figures(page)["Decoding speed by context"].iter("path")
    assert sum(str(one.get("class")).startswith("cross") for one in paths) == 2 * 3


@pytest.mark.parametrize(
    ("kinds", "plots"), [(("pp",), 2), (("tg",), 3), ((), 0)], ids=["pp", "tg", "nothing"]
)
def test_a_report_of_fewer_tests_still_draws(
    made: Report, kinds: tuple[str, ...], plots: int
) -> None:
    results = tuple(result for result in made.results if result.test.startswith(kinds))
    page = html(msgspec.structs.replace(made, results=results))
    check_page(page)
    assert len(figures(page)) == plots


def test_without_quality_the_page_has_no_figures_of_it(made: Report) -> None:
    results = tuple(msgspec.structs.replace(r, kl=None, top1=None) for r in made.results)
    page = html(msgspec.structs.replace(made, results=results, quality_tokens=0))
    assert page.count("<td>–</td>") == 2 * 3
    assert "Speed against quality" not in figures(page)
    assert "are measured on" not in page


def test_sensors_have_a_table(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    page = html(report(manifest, ours=timed("edgelm int8 tiny"), sensors=watched()))
    cells = check_page(page).texts
    assert {"Sensors", "sensor", "energy J", "VDD_IN", "500.0", "J/token"} <= set(cells)
    assert {"tj <thermal>", "Not read: GPU: no <driver>."} <= set(cells)
    assert "INVALID" not in cells
    assert "<thermal>" not in page


def test_without_sensors_they_are_not_mentioned(page: str) -> None:
    assert "Sensors" not in page
    assert "J/token" not in page


def test_a_throttled_run_is_invalid_at_the_top(bundle: Path) -> None:
    sensors = watched(throttled=(3.0, 4.0))
    made = report(read_manifest(bundle), ours=timed("edgelm int8 tiny"), sensors=sensors)
    page = html(made)
    assert page.index('class="alert"') < page.index('class="lead"')
    text = Page(page).text
    assert "INVALID: the machine throttled while it was measured (cpu-throttle-alert 1×)" in text
