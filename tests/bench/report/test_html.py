"""report.html: one page that fetches nothing."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from edgelm.bench.peers.engines import SkippedEngine
from edgelm.bench.report.html import html
from edgelm.bench.report.report import Report
from edgelm.bundle import read_manifest
from tests.bench.records import report, samples, timed, watched

PEERS = ("llama.cpp Q4_0", "a <b> & 'c'")


@pytest.fixture(scope="module")
def made(bundle: Path) -> Report:
    others = [samples(name, slower=2.0) for name in PEERS]
    absent = (SkippedEngine("onnxruntime-genai", "not <installed>"),)
    return report(read_manifest(bundle), *others, absent=absent)


@pytest.fixture(scope="module")
def page(made: Report) -> str:
    return html(made)


class Reader(HTMLParser):
    """Collects text outside of plots, and every attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: list[str] = []
        self.in_svg = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.in_svg = self.in_svg or tag == "svg"

    def handle_endtag(self, tag: str) -> None:
        self.in_svg = self.in_svg and tag != "svg"

    def handle_data(self, data: str) -> None:
        if not self.in_svg:
            self.text.append(data)


@pytest.fixture(scope="module")
def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def test_nothing_is_fetched(page: str, read: Reader) -> None:
    links = [
        value or ""
        for name, value in read.attributes
        if name.split(":")[-1] in ("src", "href", "srcset", "data", "action")
    ]
    assert [link for link in links if not link.startswith("#")] == []
    assert not {"script", "link", "iframe", "img", "object", "base"} & set(read.tags)
    assert "@import" not in page
    assert re.findall(r"url\((?!#|'#|\"#)", page) == []


def test_every_engine_and_test_is_named(made: Report, read: Reader) -> None:
    cells = set(read.text)
    assert {"edgelm int8 tiny", *PEERS} <= cells
    assert {"pp100 t/s", "tg4 t/s", "tg4@d50 t/s"} <= cells
    assert "- onnxruntime-genai: not <installed>" in cells
    assert made.command in cells
    assert any("Test CPU" in text for text in cells)


def test_names_in_plots_are_escaped_too(page: str) -> None:
    assert "<b>" not in page
    assert page.count("llama.cpp Q4_0") >= 4


def test_four_plots_are_well_formed_and_titled(page: str) -> None:
    plots = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(plots) == 4
    titles = ("Decoding by context depth", "Prompt processing", "Peak resident memory", "KL")
    for plot, title in zip(plots, titles, strict=True):
        texts = ["".join(node.itertext()) for node in ET.fromstring(plot).iter()]
        assert any(title in text for text in texts)


def test_ids_of_one_plot_are_not_used_by_another(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    shared = {name for name in ids if ids.count(name) > 1}
    references = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    definitions: dict[str, set[str]] = {}
    paths = re.findall(r'<path id="([^"]+)" d="([^"]*)"', page)
    clips = re.findall(r'<clipPath id="([^"]+)">(.*?)</clipPath>', page, flags=re.DOTALL)
    for name, body in paths + clips:
        definitions.setdefault(name, set()).add(body)
    # A repeated id is harmless only if every definition of it is the same.
    assert [name for name in shared & references if len(definitions.get(name, ())) > 1] == []


def test_the_same_report_gives_the_same_bytes(made: Report, page: str) -> None:
    assert html(made) == page


def test_our_rows_stand_out(page: str) -> None:
    assert page.count("<tr class=ours>") == 1
    assert page.count("<tr class=peer>") == len(PEERS)


@pytest.mark.parametrize("kinds", [("pp",), ("tg",), ()], ids=["pp", "tg", "nothing"])
def test_a_report_of_fewer_tests_still_draws(made: Report, kinds: tuple[str, ...]) -> None:
    results = tuple(result for result in made.results if result.test.startswith(kinds))
    page = html(msgspec.structs.replace(made, results=results))
    assert page.count("<svg") == 4


def test_without_quality_the_page_has_no_figures_of_it(made: Report) -> None:
    results = tuple(msgspec.structs.replace(r, kl=None, top1=None) for r in made.results)
    page = html(msgspec.structs.replace(made, results=results))
    assert page.count("<td>–</td>") == 2 * 3


def read_page(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def test_sensors_have_a_table(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    page = html(report(manifest, ours=timed("edgelm int8 tiny"), sensors=watched()))
    cells = read_page(page).text
    assert {"Sensors", "sensor", "energy J", "VDD_IN", "500.0", "J/token"} <= set(cells)
    assert {"tj <thermal>", "Not read: GPU: no <driver>."} <= set(cells)
    assert "INVALID" not in cells
    assert "<thermal>" not in page


def test_without_sensors_nothing_is_said_of_them(page: str) -> None:
    assert "Sensors" not in page
    assert "J/token" not in page


def test_a_throttled_run_is_invalid_at_the_top(bundle: Path) -> None:
    sensors = watched(throttled=(3.0, 4.0))
    made = report(read_manifest(bundle), ours=timed("edgelm int8 tiny"), sensors=sensors)
    page = html(made)
    assert page.index("class=invalid") < page.index("<table")
    said = "".join(read_page(page).text)
    assert "INVALID: the machine throttled while it was measured (cpu-throttle-alert 1×)" in said
