"""langdetect is no dependency: a stand-in has the interface of langdetect 1.0.9."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, ClassVar

import pytest

from edgelm.compress.evaluation.tasks.ifeval import language
from edgelm.compress.evaluation.tasks.ifeval.language import language_of, require_language_detection
from edgelm.errors import MissingPackage

MESSAGE = r"detecting the language of answers needs langdetect: pip install langdetect"


class NoFeaturesError(Exception):
    """As LangDetectException."""


class Factory:
    """Tells German by its articles; counts how often profiles are loaded."""

    loaded: ClassVar[list[str]] = []
    seed: int | None = None

    def load_profile(self, folder: str) -> None:
        self.loaded.append(folder)

    def create(self) -> "Detector":
        assert self.seed == 0, "unseeded: its answers would change from run to run"
        return Detector()


class Detector:
    def __init__(self) -> None:
        self._text = ""

    def append(self, text: str) -> None:
        self._text += text

    def detect(self) -> str:
        if not any(map(str.isalpha, self._text)):
            raise NoFeaturesError("No features in text.")
        return "de" if {"der", "die", "das"} & set(self._text.split()) else "en"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    language._detector.cache_clear()
    yield
    language._detector.cache_clear()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> type[Factory]:
    module: Any = ModuleType("langdetect")
    module.DetectorFactory = Factory
    module.LangDetectException = NoFeaturesError
    module.PROFILES_DIRECTORY = "/profiles"
    monkeypatch.setitem(sys.modules, "langdetect", module)
    monkeypatch.setattr(Factory, "loaded", [])
    return Factory


def test_without_langdetect_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "langdetect", None)
    with pytest.raises(MissingPackage, match=MESSAGE):
        language_of("Good morning")
    with pytest.raises(MissingPackage, match=MESSAGE):
        require_language_detection()


def test_it_can_be_installed_meanwhile(
    monkeypatch: pytest.MonkeyPatch, installed: type[Factory]
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "langdetect", None)
        with pytest.raises(MissingPackage):
            require_language_detection()
    require_language_detection()


def test_languages_are_told_and_profiles_loaded_once(installed: type[Factory]) -> None:
    require_language_detection()
    assert language_of("die Antwort ist nein") == "de"
    assert language_of("the answer is no") == "en"
    assert installed.loaded == ["/profiles"]


def test_a_text_without_letters_has_no_language(installed: type[Factory]) -> None:
    assert language_of("123 ...") is None


def test_the_real_package() -> None:
    pytest.importorskip("langdetect", reason="needs langdetect: pip install langdetect")
    texts = {
        "en": "The miller waits until the level outside has dropped below the wheel.",
        "de": "Der Müller wartet, bis das Wasser draußen unter das Rad gefallen ist.",
        "hi": "चक्की वाला तब तक इंतज़ार करता है जब तक पानी नीचे न आ जाए।",
    }
    assert {code: language_of(text) for code, text in texts.items()} == {c: c for c in texts}
    assert language_of("*** 123") is None
    # Mixed text, where an unseeded detector wavers.
    assert len({language_of("Good morning, das ist gut, merci") for _ in range(20)}) == 1
