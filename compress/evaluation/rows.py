"""Rows of a task's JSONL file, with their fields checked."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgelm.compress.data.jsonl import read_jsonl
from edgelm.errors import BadInput


def task_rows(
    name: str, limit: int | None, fields: Mapping[str, type]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The first rows of a file, each with `FILE:LINE`; all have the fields.

    Raises:
        BadInput: a row of another form (the line is named), or no rows.
    """
    count = 0
    for where, row in read_jsonl(Path(name)):
        for field, kind in fields.items():
            if not isinstance(row.get(field), kind):
                raise BadInput(
                    f"{where}: expected a field `{field}` ({kind.__name__}) among "
                    f"{', '.join(fields)}; found {', '.join(row)[:200] or 'none'}"
                )
        yield where, row
        count += 1
        if count == limit:
            return
    if not count:
        raise BadInput(f"{name} holds no rows; expected one JSON object per line")
