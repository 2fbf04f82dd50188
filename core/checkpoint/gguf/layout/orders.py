"""The order of rows and columns in which llama.cpp stores some matrices."""

from collections.abc import Callable

import numpy as np

from edgelm.checkpoint.gguf.config.keys import Keys
from edgelm.checkpoint.gguf.layout.architecture import Architecture
from edgelm.checkpoint.gguf.layout.made_tensor import Indices, Made
from edgelm.errors import BadCheckpoint

_ROTATED = {
    ".self_attn.q_proj.": "head_count",
    ".self_attn.k_proj.": "head_count_kv",
    ".mixer.q_proj.": "head_count",
    ".mixer.k_proj.": "head_count_kv",
}
# Of gated delta layers, what is in the order of value heads, and whether in rows of single heads.
_BY_VALUE = {
    ".in_proj_z.": False,
    ".in_proj_b.": True,
    ".in_proj_a.": True,
    ".dt_bias": True,
    ".A_log": True,
}
_BY_HEAD = ".attention.query_key_value."
_AFTER_KEYS = (".in_proj_qkv.", ".conv1d.")


class Orders:
    """The places in Hugging Face's tensors of what a file stores."""

    def __init__(self, row: Architecture, keys: Keys) -> None:
        self._row = row
        self._keys = keys

    def moves(self, name: str) -> bool:
        """Whether rows or columns of a tensor are in another order."""
        return self._order(name) is not None or self.moves_columns(name)

    def rows(self, made: Made) -> list[Indices | None]:
        """The places of each part's rows."""
        order = self._order(made.name)
        return made.joined() if order is None else [order(made)]

    def columns(self, made: Made) -> Indices | None:
        """The places of columns; None for all in order."""
        if self.moves_columns(made.name):
            return self._value_places(made, made.rows_and_columns[1])
        return None

    @property
    def value_dim(self) -> int:
        """Channels of a value head, which stay together."""
        size, heads = self._keys.size("ssm.inner_size"), self._keys.size("ssm.time_step_rank")
        return max(1, size // heads)

    def moves_columns(self, name: str) -> bool:
        """Whether columns of a matrix are in another order."""
        return self._row.tiled_values and ".linear_attn.out_proj." in name

    def _order(self, name: str) -> Callable[[Made], Indices] | None:
        if self._row.permuted and any(part in name for part in _ROTATED):
            return self._rotated
        if self._row.qkv_by_head and _BY_HEAD in name:
            return self._head_by_head
        if self._row.tiled_values and ".linear_attn." in name:
            if any(part in name for part in _AFTER_KEYS):
                return self._after_keys
            for part, single in _BY_VALUE.items():
                if part in name:
                    return self._single_heads if single else self._values
        return None

    def _rotated(self, made: Made) -> Indices:
        # llama.cpp interleaves the two rotary halves of a head; Hugging Face separates them.
        key = next(key for part, key in _ROTATED.items() if part in made.name)
        return self._split_heads(made, self._heads(key), 2).swapaxes(1, 2).reshape(-1)

    def _head_by_head(self, made: Made) -> Indices:
        # llama.cpp stacks all queries, all keys and all values.
        heads = self._keys.size("attention.head_count")
        return self._split_heads(made, heads, 3).swapaxes(0, 1).reshape(-1)

    def _split_heads(self, made: Made, heads: int, parts: int) -> Indices:
        """The rows of Hugging Face's tensor [heads, parts, rest]."""
        rows = made.rows_and_columns[0]
        if rows % (parts * heads):
            raise BadCheckpoint(
                f"{self._keys.path}: {made.name} has {rows} rows, which are not {parts} equal "
                f"parts of each of {heads} heads; convert the model again"
            )
        return np.arange(rows).reshape(heads, parts, -1)

    def _heads(self, key: str) -> int:
        """Heads of the layers that have some."""
        counts = self._keys.each_layer(f"attention.{key}", self._keys.size("attention.head_count"))
        return max(1, *counts)

    def _values(self, made: Made) -> Indices:
        return self._value_places(made, made.rows_and_columns[0])

    def _single_heads(self, made: Made) -> Indices:
        rows = made.rows_and_columns[0]
        return self._tiled(made, rows, rows)

    def _after_keys(self, made: Made) -> Indices:
        rows, values = made.rows_and_columns[0], self._keys.size("ssm.inner_size")
        before = max(0, rows - values)
        return np.concatenate([np.arange(before), before + self._value_places(made, rows - before)])

    def _value_places(self, made: Made, channels: int) -> Indices:
        return self._tiled(made, channels, self._keys.size("ssm.time_step_rank"))

    def _tiled(self, made: Made, channels: int, heads: int) -> Indices:
        keys = self._keys.size("ssm.group_count")
        if heads % keys or channels % heads:
            raise BadCheckpoint(
                f"{self._keys.path}: {made.name} has {channels} channels of values, expected those "
                f"of {heads} heads, a multiple of {keys} key heads; convert the model again"
            )
        places = np.arange(channels).reshape(keys, heads // keys, -1)
        return places.swapaxes(0, 1).reshape(-1)
