"""Write what the runtime needs beside the graph: tokenizer, chat template, generation defaults."""

import json
from pathlib import Path
from typing import Any

from edgelm.checkpoint import Checkpoint
from edgelm.errors import BadCheckpoint
from edgelm.export.text_files import text_files
from edgelm.runtime.chat import ChatTemplate
from edgelm.runtime.special_tokens import FILE


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
        template.write_text(files.template, encoding="utf-8", newline="")
        _check_template(checkpoint, template)
    if files.special_tokens is not None:
        _write_json(folder / FILE, files.special_tokens)
    _write_json(folder / "generation_config.json", files.generation)


def _check_template(checkpoint: Checkpoint, path: Path) -> None:
    try:
        ChatTemplate(path, special_tokens={})
    except Exception as error:  # a template is a program: its parser can fail in any way
        reason = str(error).replace(str(path), path.name)[:300]
        raise BadCheckpoint(
            f"the chat template of {checkpoint.path} does not parse: {reason}; repair it, or "
            "remove it to export without one"
        ) from None


def _write_json(path: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
