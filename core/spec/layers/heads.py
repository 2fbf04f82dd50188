"""The sizes of one layer's attention."""

from typing import NamedTuple


class HeadSizes(NamedTuple):
    """The heads of one layer's attention: of queries, of keys, and channels of each."""

    queries: int
    keys: int
    dim: int

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.queries * self.dim

    @property
    def kv_size(self) -> int:
        """Width of all key (or value) heads together."""
        return self.keys * self.dim
