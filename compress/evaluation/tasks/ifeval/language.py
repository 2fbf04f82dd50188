"""Language detection with the package langdetect (optional, pure Python, no downloads)."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

from edgelm.errors import MissingPackage


def language_of(text: str) -> str | None:
    """ISO 639-1 code of the most likely language; None for a text without letters.

    Raises:
        MissingPackage: langdetect is not installed.
    """
    return _detector()(text)


def require_language_detection() -> None:
    """Raise MissingPackage now instead of after hours of generation."""
    _detector()


@cache
def _detector() -> Callable[[str], str | None]:
    try:
        langdetect: Any = import_module("langdetect")
    except ImportError:
        raise MissingPackage(
            "detecting the language of answers needs langdetect: pip install langdetect"
        ) from None
    factory = langdetect.DetectorFactory()
    factory.load_profile(langdetect.PROFILES_DIRECTORY)
    factory.seed = 0  # it samples the text, and is unseeded by default

    def detect(text: str) -> str | None:
        detector = factory.create()
        detector.append(text)
        try:
            return str(detector.detect())
        except langdetect.LangDetectException:
            return None

    return detect
