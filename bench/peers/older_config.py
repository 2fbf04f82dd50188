"""A Hugging Face folder as transformers 4 reads it.

transformers 5 writes rotary embeddings into `rope_parameters`. transformers 4 ignores that field
without a message and takes its default base, which is another model.
"""

import json
from pathlib import Path


def write_older_config(source: Path, folder: Path) -> Path:
    """Link the files of `source` into an empty `folder`, with a configuration for both versions.

    Returns:
        The folder.
    """
    for path in source.iterdir():
        if path.is_file() and path.name != "config.json":
            (folder / path.name).symlink_to(path.resolve())
    config = json.loads((source / "config.json").read_text())
    rope = dict(config.get("rope_parameters") or {})
    if "rope_theta" in rope:
        config.setdefault("rope_theta", rope.pop("rope_theta"))
        if rope.get("rope_type", "default") != "default":
            config.setdefault("rope_scaling", rope)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder
