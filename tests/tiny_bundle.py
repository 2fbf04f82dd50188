"""The bundle of the runtime's tests, for environments that cannot export it.

python -m tests.tiny_bundle FOLDER
"""

import sys
import tempfile
from pathlib import Path

from edgelm.export.pipeline import export_model
from tests.checkpoints.models import tiny_model
from tests.checkpoints.tiny_chat import CONTEXT, VOCAB, save_tiny_chat


def save_lively(folder: Path) -> Path:
    """Save a tiny chat model whose greedy decoding does not fall into repeating one token."""
    save_tiny_chat(folder)
    lively = tiny_model("llama-untied", vocab_size=VOCAB, max_position_embeddings=CONTEXT)
    lively.save_pretrained(folder)
    # save_pretrained writes generation defaults too; a turn ends with `<|end|>`.
    (folder / "generation_config.json").write_text('{"eos_token_id": 3, "bos_token_id": 1}')
    return folder


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as source:
        export_model(save_lively(Path(source)), Path(sys.argv[1]), precision="fp32")
