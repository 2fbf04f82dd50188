"""Copy what the runtime needs beside the graph: tokenizer, chat template, generation defaults."""

import json
import shutil
from pathlib import Path
from typing import Any

from edgelm.checkpoint import Checkpoint
from edgelm.errors import BadCheckpoint

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def write_tokenizer_files(checkpoint: Checkpoint, folder: Path) -> None:
    """Write `tokenizer.json`, `chat_template.jinja` (if any) and `generation_config.json`.

    Raises:
        BadCheckpoint: the source has no fast tokenizer.
    """
    if checkpoint.is_gguf:
        _from_gguf(checkpoint.path, folder)
        template = folder / "chat_template.jinja"
    else:
        source = checkpoint.path / "tokenizer.json"
        if not source.is_file():
            raise BadCheckpoint(
                f"{checkpoint.path} has no tokenizer.json; write one with transformers: "
                "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
        shutil.copyfile(source, folder / "tokenizer.json")
        template = _copy_template(checkpoint.path, folder)
    defaults = _generation_config(checkpoint)
    if not template.is_file():
        template.unlink(missing_ok=True)
    (folder / "generation_config.json").write_text(json.dumps(defaults, indent=1) + "\n")


def _from_gguf(path: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        str(path.parent), gguf_file=path.name, trust_remote_code=False
    )
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    (folder / "special_tokens_map.json").unlink(missing_ok=True)


def _copy_template(source: Path, folder: Path) -> Path:
    """The template as its own file, wherever this version of transformers wrote it."""
    target = folder / "chat_template.jinja"
    if (source / target.name).is_file():
        shutil.copyfile(source / target.name, target)
        return target
    template = _read_json(source / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several named templates
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    if isinstance(template, str):
        target.write_text(template)
    return target


def _generation_config(checkpoint: Checkpoint) -> dict[str, Any]:
    config = {key: checkpoint.config.get(key) for key in _TOKEN_IDS}
    if not checkpoint.is_gguf:
        stored = _read_json(checkpoint.path / "generation_config.json")
        config |= {key: value for key, value in stored.items() if value is not None}
        config["eos_token_id"] = _all_ends(checkpoint, config.get("eos_token_id"))
    return {key: value for key, value in config.items() if value is not None}


def _all_ends(checkpoint: Checkpoint, stored: Any) -> Any:
    """Every end-of-sequence id: generation and model configuration sometimes disagree."""
    ends: list[int] = []
    for value in (stored, checkpoint.config.get("eos_token_id")):
        ids = value if isinstance(value, list) else [value]
        ends += [token for token in ids if token is not None and token not in ends]
    return ends or None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise BadCheckpoint(f"{path} is not valid JSON: {error}") from None
    return value if isinstance(value, dict) else {}
