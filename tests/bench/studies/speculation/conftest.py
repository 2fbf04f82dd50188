import json
from pathlib import Path

import pytest

from edgelm.export.bundle.draft_model import export_draft
from edgelm.export.pipeline import export_model
from tests.checkpoints.tiny_chat import save_tiny_chat

PROMPTS = ("Why is the sky blue?", "Count to three.")


@pytest.fixture(scope="package")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with another model of the same shape as its draft, which is mostly wrong."""
    folder = tmp_path_factory.mktemp("acceptance")
    source = save_tiny_chat(folder / "source", context=256)
    export_model(source, folder / "bundle", precision="int8", gate="off")
    export_draft(source, folder / "bundle", precision="int4", group_size=32)
    lines = "".join(json.dumps({"prompt": one}) + "\n" for one in PROMPTS)
    (folder / "prompts.jsonl").write_text(lines, encoding="utf-8")
    return folder / "bundle"
