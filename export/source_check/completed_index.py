"""A folder that transformers can load where only the metadata of its index is missing.

transformers stores the size of all tensors in the index and reads it back; converters of others
leave it out.
"""

import json
from pathlib import Path

from edgelm.files.json_files import read_json_object


def link_with_index(folder: Path, index: Path, target: Path) -> None:
    """Link the files of a folder into an empty one, with an index that has metadata.

    Args:
        folder: the model.
        index: its index, a file in `folder`.
        target: an existing empty folder.
    """
    for path in folder.iterdir():
        if path != index:
            (target / path.name).symlink_to(path.resolve())
    completed = read_json_object(index) | {"metadata": {}}
    (target / index.name).write_text(json.dumps(completed), encoding="utf-8")
