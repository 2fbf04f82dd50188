"""Names of Python 3.11's standard library that Python 3.10 gets from a backport."""

import sys

if sys.version_info >= (3, 11):
    from typing import Self, Unpack

    import tomllib
else:
    import tomli as tomllib
    from typing_extensions import Self, Unpack

__all__ = ["Self", "Unpack", "tomllib"]
