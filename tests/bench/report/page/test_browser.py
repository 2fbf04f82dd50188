"""report.html as a browser shows it; without one, tests/core/page checks what it is built of."""

from pathlib import Path

import pytest

from edgelm.bench.report.page.html import html
from edgelm.bundle import read_manifest
from tests.bench.records import report, samples, timed, watched
from tests.pages.browser import CHROMIUM, run_in_page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

# The widest that anything reaches, what scrolls in its own box left out, and the smallest text.
LOOK = """page => {
  const view = page.defaultView, inside = [...page.querySelectorAll("body *")]
    .filter(one => !one.closest(".wide *"));
  return {
    scroll: page.documentElement.scrollWidth,
    right: Math.max(...inside.map(one => one.getBoundingClientRect().right)),
    text: Math.min(...[...page.querySelectorAll("svg text")].map(one =>
      parseFloat(view.getComputedStyle(one).fontSize) * one.getScreenCTM().a)),
  };
}"""
SORT = """page => {
  const heads = [...page.querySelectorAll("table.sortable thead th")];
  const names = () => [...page.querySelectorAll("table.sortable tbody th")]
    .map(one => one.textContent);
  const result = [];
  for (const name of ["tg4 t/s", "tg4 t/s", "engine", "KL"]) {
    const head = heads.find(one => one.textContent === name);
    head.querySelector("button").click();
    result.push([head.getAttribute("aria-sort"), ...names()]);
  }
  return [result, heads.filter(one => one.getAttribute("aria-sort") !== "none").length];
}"""


@pytest.fixture(scope="module")
def page(bundle: Path) -> str:
    others = [
        samples("z " + "long" * 30, slower=2.0),
        samples("a <b>peer</b>", slower=0.5, figures=None),
    ]
    ours = timed("edgelm int8 tiny")
    return html(report(read_manifest(bundle), *others, ours=ours, sensors=watched()))


def test_it_fits_a_telephone(page: str, tmp_path: Path) -> None:
    found = run_in_page(page, LOOK, tmp_path, width=390)
    assert found["scroll"] <= 390
    assert found["right"] <= 390
    assert found["text"] >= 10  # pixels


def test_a_click_on_a_heading_sorts(page: str, tmp_path: Path) -> None:
    [steps, sorted_by] = run_in_page(page, SORT, tmp_path, width=1280)
    ours, z, a = "edgelm int8 tiny", "z " + "long" * 30, "a <b>peer</b>"
    assert steps == [
        ["descending", a, z, ours],
        ["ascending", ours, z, a],
        ["ascending", a, ours, z],
        ["descending", ours, z, a],  # equal ones stay in order; the one without a figure is last
    ]
    assert sorted_by == 1
