"""Write what the runtime needs besides the graph: tokenizer, chat template, generation defaults."""

import json
from pathlib import Path
from typing import Any

from edgelm.checkpoint.source import Checkpoint
from edgelm.checkpoint.special_token_names import SPECIAL_TOKENS_FILE
from edgelm.export.bundle.text.chat_syntax import check_template
from edgelm.export.bundle.text.text_files import text_files


def write_tokenizer_files(checkpoint: Checkpoint, folder: Path) -> None:
    """Write `tokenizer.json` and `generation_config.json`.

    Where the source has them, also `chat_template.jinja` and `special_tokens_map.json`.

    Raises:
        BadCheckpoint: the source has no fast tokenizer, or a file that the runtime could not use.
    """
    files = text_files(checkpoint)
    (folder / "tokenizer.json").write_bytes(files.tokenizer)
    template = folder / "chat_template.jinja"
    template.unlink(missing_ok=True)
    if files.template is not None:
        check_template(str(checkpoint.path), files.template)
        template.write_text(files.template, encoding="utf-8", newline="")
    if files.special_tokens is not None:
        _write_json(folder / SPECIAL_TOKENS_FILE, files.special_tokens)
    _write_json(folder / "generation_config.json", files.generation)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
