"""Version numbers, compared as numbers."""

import re


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version; what follows them, such as rc1 or +cu130, is dropped.

    >>> numbers("10.16.1.11+cu13")
    (10, 16, 1, 11)
    """
    match = re.match(r"\d+(?:\.\d+)*", version.strip())
    if not match:
        raise ValueError(f"{version!r} is not a version number")
    return tuple(int(part) for part in match[0].split("."))
