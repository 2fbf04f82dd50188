"""A server of the tiny bundle with two sequences, for all tests of a file."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

import edgelm
from edgelm.runtime import LanguageModel
from edgelm.runtime.server.settings import ServerSettings
from tests.runtime.server.running import running


@pytest.fixture(scope="module")
def served(bundle: Path) -> Iterator[LanguageModel]:
    with edgelm.load(bundle, threads=1, sequences=2) as lm:
        yield lm


@pytest.fixture(scope="module")
def url(served: LanguageModel) -> Iterator[str]:
    with running(served, ServerSettings(model="tiny", max_queue=3)) as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client
