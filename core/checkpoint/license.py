"""The license that a model card names."""

from pathlib import Path

from edgelm.errors import BadCheckpoint
from edgelm.files.json_files import read_file

_MAX_CARD_BYTES = 4 * 1024**2
_MAX_NAME = 200  # characters


def read_license(folder: Path) -> str | None:
    """The `license:` line of a model card's front matter."""
    try:
        card = read_file(folder / "README.md", max_bytes=_MAX_CARD_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError, BadCheckpoint):
        return None
    front = card.split("---")[1] if card.startswith("---") else ""
    lines = (line.partition(":") for line in front.splitlines())
    name = next((value.strip() for key, _, value in lines if key == "license"), "")
    return name if 0 < len(name) <= _MAX_NAME else None
