"""The chat page in headless Chromium, on the real server: asking, stopping, errors, widths."""

import time
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest

from edgelm.runtime import LanguageModel
from edgelm.runtime.server.settings import ServerSettings
from tests.pages.browser import CHROMIUM
from tests.pages.driven_browser import Tab, opened_tab
from tests.pages.page_checks import Page
from tests.runtime.server.running import running, wait_until

PAGE = (files("edgelm.runtime.server") / "chat.html").read_text(encoding="utf-8")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
SEND = 'document.getElementById("form").requestSubmit()'


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with opened_tab(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


def write(tab: Tab, text: str) -> None:
    tab.run(f'document.getElementById("input").value = {text!r}')


def messages(tab: Tab) -> Any:
    return tab.run('[...document.querySelectorAll(".message")].map(box => box.textContent)')


def test_it_stands_alone_and_is_labeled() -> None:
    page = Page(PAGE)
    assert page.unbalanced == []
    assert page.open == []
    for _, attributes in page.elements:
        assert not {"src", "href"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
    assert "innerHTML" not in PAGE
    assert "http:" not in PAGE
    assert "https:" not in PAGE
    for field in page.all("textarea"):
        assert field["aria-label"]


@needs_browser
@pytest.mark.parametrize("width", [1280, 360])
def test_a_conversation(tab: Tab, served: LanguageModel, width: int) -> None:
    with running(served, ServerSettings(model="tiny", max_tokens=8)) as (address, _):
        tab.open(address, width=width)
        tab.wait('document.getElementById("model").textContent === "tiny"')
        for asked in ("Why?", "<img src=x onerror=alert(1)>"):
            write(tab, asked)
            tab.run(SEND)
            tab.wait('document.getElementById("send").textContent === "Send"')
            assert "tokens/s" in tab.run('document.getElementById("status").textContent')
    shown = messages(tab)
    assert shown[0] == "Why?"
    assert shown[2].startswith("<img")
    assert len(shown) == 4
    assert tab.run("document.images.length") == 0
    # Nothing is wider than the window, and what one types into is within it.
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert tab.run('document.getElementById("send").getBoundingClientRect().bottom') <= 800
    tab.run('document.getElementById("new").click()')
    assert messages(tab) == []
    assert tab.problems == []


@needs_browser
def test_stop_frees_the_sequence(
    tab: Tab, url: str, served: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for slot in served._sequences.slots:
        advance = slot.session.advance

        def late(*given: Any, advance: Any = advance, **named: Any) -> Any:
            time.sleep(0.3)
            return advance(*given, **named)

        monkeypatch.setattr(slot.session, "advance", late)
    tab.open(url, width=1280)
    write(tab, "Why is the sky blue?")
    tab.run(SEND)
    wait_until(lambda: served.running == 1)
    assert tab.run('document.getElementById("send").textContent') == "Stop"
    tab.run(SEND)
    wait_until(lambda: served.running == 0)
    tab.wait('document.getElementById("send").textContent === "Send"')


@needs_browser
def test_errors_are_shown(tab: Tab, served: LanguageModel) -> None:
    settings = ServerSettings(model="tiny", api_keys=("0123456789abcdef",))
    with running(served, settings) as (address, _):
        tab.open(address, width=360)
        tab.wait('document.getElementById("status").textContent.includes("no valid API key")')
        tab.run('document.getElementById("key").value = "0123456789abcdef"')
        write(tab, "word " * 500)
        tab.run(SEND)
        tab.wait('document.getElementById("status").textContent.includes("the context holds 128")')
        assert messages(tab) == []
        # The question can be changed.
        assert tab.run('document.getElementById("input").value.length') == 2500
