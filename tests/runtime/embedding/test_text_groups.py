"""Which texts run together."""

import pytest

from edgelm.runtime.embedding.text_groups import group_texts


@pytest.mark.parametrize(
    ("lengths", "tokens", "groups"),
    [
        ([5, 5, 5], 0, [[0], [1], [2]]),
        ([5, 5, 5], 15, [[0, 1, 2]]),
        ([5, 5, 5], 14, [[0, 1], [2]]),
        ([3, 60, 9], 128, [[1], [2, 0]]),
        ([64, 50, 49], 200, [[0, 1, 2]]),
        ([100, 75, 74], 300, [[0, 1], [2]]),
        ([300, 20], 128, [[0], [1]]),
        ([], 128, []),
    ],
)
def test_groups(lengths: list[int], tokens: int, groups: list[list[int]]) -> None:
    assert group_texts(lengths, tokens) == groups


def test_each_text_is_in_one_group_that_fits() -> None:
    lengths = [1 + 7 * number % 90 for number in range(200)]
    groups = group_texts(lengths, 128)
    assert sorted(index for group in groups for index in group) == list(range(200))
    assert all(len(group) * max(lengths[at] for at in group) <= 128 for group in groups)
    assert len(groups) < 120
