"""What a manifest may say of layers that keep only their window."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from edgelm.bundle import EngineRequirement, Manifest
from edgelm.bundle.manifest_checks import check_manifest
from tests.core.bundle.test_bundle import manifest_of

WINDOW, ROWS = 8, 24


def windowed(change: Callable[[dict[str, Any]], None] = lambda _: None) -> Manifest:
    """A manifest whose first layer keeps 24 rows, after a change of that layer."""
    whole = manifest_of({})
    layers = tuple(
        msgspec.structs.replace(layer, window=WINDOW if index == 0 else None)
        for index, layer in enumerate(whole.spec.layers)
    )
    values = {"rows": ROWS, "window": WINDOW}
    change(values)
    first, *others = whole.graph.cache.layers
    cache = msgspec.structs.replace(
        whole.graph.cache, layers=(msgspec.structs.replace(first, **values), *others)
    )
    return msgspec.structs.replace(
        whole,
        spec=msgspec.structs.replace(whole.spec, layers=layers),
        graph=msgspec.structs.replace(whole.graph, cache=cache),
    )


def test_a_windowed_layer_may_keep_its_window() -> None:
    check_manifest(windowed())
    check_manifest(windowed(lambda values: values.update(rows=None, window=None)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rows": WINDOW - 1}, "'pk.0' has 7 rows, expected the window of spec.layers.0., 8"),
        ({"rows": 65}, "'pk.0' has 65 rows, expected .* limits.context, 64"),
        ({"window": 9}, "'pk.0' has the window 9, expected 8"),
        ({"window": None}, "'pk.0' has the window None, expected 8"),
    ],
    ids=["too few", "too many", "another window", "no window"],
)
def test_numbers_that_contradict_the_decoder(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_manifest(windowed(lambda own: own.update(values)))


def test_a_layer_without_a_window_keeps_all_tokens() -> None:
    manifest = windowed()
    layers = tuple(msgspec.structs.replace(one, window=None) for one in manifest.spec.layers)
    spec = msgspec.structs.replace(manifest.spec, layers=layers)
    bare = msgspec.structs.replace(manifest, spec=spec)
    with pytest.raises(ValueError, match=r"'pk.0' has rows, but spec.layers\[0\] has no window"):
        check_manifest(bare)


@pytest.mark.parametrize("engine", ["onnxruntime-cuda", "tensorrt"])
def test_only_onnxruntimes_cpu_has_such_a_cache(engine: str) -> None:
    manifest = msgspec.structs.replace(windowed(), engine=EngineRequirement(engine))
    with pytest.raises(ValueError, match=f"only the ort dialect has.*for {engine}"):
        check_manifest(manifest)
