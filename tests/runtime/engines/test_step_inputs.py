"""What a graph is given for a step: by hand, and the same whether made or updated."""

import numpy as np
import pytest

from edgelm.bundle.roles import ROLES
from edgelm.runtime.engines.step_inputs import step_inputs, update_step

# How many rows the cache has is not a matter of the step: the engine that grows it says so.
MADE = ROLES.keys() - {"cache_positions"}


def test_by_hand() -> None:
    inputs = step_inputs(np.array([7, 8, 9]), 5, 2)
    assert {role: values.tolist() for role, values in inputs.items()} == {
        "tokens": [[7, 8, 9]],
        "positions": [[5, 6, 7]],
        "past_length": [5],
        "last_position": [7],
        "total_length": 8,
        "logits_positions": [1, 2],
    }


@pytest.mark.parametrize(("count", "logits"), [(1, 1), (4, 4), (4, 1), (4, 9)])
def test_types_and_shapes_are_those_of_the_bundle(count: int, logits: int) -> None:
    inputs = step_inputs(np.arange(count), 3, logits)
    assert inputs.keys() == MADE
    sizes: dict[int | str, int] = {"T": count, "P": min(count, logits)}
    for role in MADE:
        dtype, shape = ROLES[role]
        assert inputs[role].dtype == dtype
        assert inputs[role].shape == tuple(sizes.get(size, size) for size in shape)


def test_a_head_computes_at_least_one_row() -> None:
    assert step_inputs(np.arange(4), 0, 0)["logits_positions"].tolist() == [3]


def test_the_tokens_are_copied() -> None:
    """The caller may change its array while the engine runs."""
    tokens = np.arange(3)
    inputs = step_inputs(tokens, 0, 1)
    tokens[:] = 9
    assert inputs["tokens"].tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("past", [0, 1, 4095])
def test_an_updated_step_is_a_new_one(past: int) -> None:
    inputs = step_inputs(np.array([0]), 0, 1)
    addresses = {role: values.ctypes.data for role, values in inputs.items()}
    update_step(inputs, 42, past)
    expected = step_inputs(np.array([42]), past, 1)
    assert all((inputs[role] == expected[role]).all() for role in MADE)
    assert {role: values.ctypes.data for role, values in inputs.items()} == addresses
