"""Layers that differ on TensorRT: what those without attention remember stays on the GPU, and
caches may have shapes of their own and several readers."""

from collections.abc import Iterator

import numpy as np
import pytest

from tests.conftest import TinyFactory
from tests.export.graphs import CONTEXT, DialectName
from tests.runtime.engines.tensorrt.conftest import build_source, open_device
from tests.runtime.engines.tensorrt.device import TOKENS, Device, Source, assert_same

SOURCES: list[tuple[str, DialectName, int]] = [
    ("lfm2", "standard", 1),
    ("lfm2", "decomposed", 1),
    ("lfm2", "standard", 3),
    ("qwen3.5", "standard", 1),
    ("qwen3.5", "decomposed", 3),
    ("gemma3n", "standard", 3),
    ("gemma4", "standard", 1),
    ("gemma4", "decomposed", 1),
    ("gemma4-dense", "decomposed", 1),
    ("gemma4", "standard", 3),
    ("gemma4", "decomposed", 3),
]


@pytest.fixture(scope="module", params=SOURCES, ids=lambda one: "-".join(map(str, one)))
def hybrid(
    request: pytest.FixtureRequest, tiny: TinyFactory, tmp_path_factory: pytest.TempPathFactory
) -> Source:
    name, dialect, segments = request.param
    folder = tmp_path_factory.mktemp("hybrid")
    return build_source(tiny(name).checkpoint, folder, dialect, segments)


@pytest.fixture
def machine(hybrid: Source, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    with open_device(hybrid, monkeypatch) as device:
        yield device


def test_prefill_and_decoding_are_those_of_onnxruntime(machine: Device) -> None:
    with machine.open() as session:
        both = (session, machine.reference)
        assert_same(*(one.advance(TOKENS[:20], logits=20) for one in both))
        for at in range(20, 30):
            assert_same(*(one.advance(TOKENS[at : at + 1]) for one in both))
        assert_same(*(one.advance(TOKENS[30:50], logits=20) for one in both))
        assert machine.cuda.launches == 9  # the recorded step advances the state too


@pytest.mark.parametrize("cut", [0, 7, 16, 20, 25])
def test_a_return_to_earlier_tokens(machine: Device, cut: int) -> None:
    with machine.open() as session:
        for one in (session, machine.reference):
            one.advance(TOKENS[:20])
            for at in range(20, 30):
                one.advance(TOKENS[at : at + 1])
            one.rewind(cut)
        assert_same(*(one.advance(TOKENS[30:40]) for one in (session, machine.reference)))


def test_the_state_moves_to_another_engine(machine: Device) -> None:
    with machine.open() as session:
        session.advance(TOKENS[:20])
        state = [np.array(array) for array in session.state(20)]
        expected = session.advance(TOKENS[20:30], logits=10).copy()
    with machine.open() as other:
        other.restore(TOKENS[:20].tolist(), state)
        assert_same(other.advance(TOKENS[20:30], logits=10), expected)


def test_it_is_part_of_the_memory(machine: Device) -> None:
    with machine.open() as session:
        rows = CONTEXT * machine.spec.kv_bytes_per_token(4)
        least = rows + 2 * machine.spec.state_bytes(4)
        assert session.cache_bytes >= least
