"""Which texts run together: of nearly the same length, so that little is padding."""

from collections.abc import Sequence

# How much padding a text may need, as a share of the longest one or in tokens: runs of few tokens
# take about the same time, since each reads all weights.
_MAX_PADDING = 0.25
_SHORT = 16


def group_texts(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Indices of texts, in groups that run together.

    Args:
        lengths: tokens of each text.
        tokens: that a run of several texts takes, padding included; 0: each runs alone.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda one: (-lengths[one], one)):
        if groups:
            longest = lengths[groups[-1][0]]
            near = longest - lengths[index] <= max(_SHORT, int(_MAX_PADDING * longest))
            if near and (len(groups[-1]) + 1) * longest <= tokens:
                groups[-1].append(index)
                continue
        groups.append([index])
    return groups
