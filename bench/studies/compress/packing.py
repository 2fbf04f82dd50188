r"""Pack gigabytes of text: tokens per second, and the memory that it takes.

    python -m bench.studies.compress.packing TOKENIZER --text train.jsonl --size 2GB --processes 2 \
        --folder /tmp/packing

Documents are those of `--text`, repeated in an order of their own until their text has the size.
Memory is the peak of the process that packs and, separately, of the largest one that tokenizes.
"""

import argparse
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgelm.cli import bytes_argument
from edgelm.compress.data.documents import Document, read_documents
from edgelm.compress.data.packing import pack
from edgelm.compress.model import load_tokenizer


def main(arguments: list[str] | None = None) -> int:
    """Pack, and print one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("tokenizer", help="a model's folder or .gguf file")
    add("--text", required=True)
    add("--size", type=bytes_argument, required=True, help="of the text, e.g. 2GB")
    add("--processes", type=int, default=1)
    add("--length", type=int, default=4096)
    add("--folder", type=Path, required=True)
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(options.tokenizer)
    before = _peak(resource.RUSAGE_SELF)
    begun = time.monotonic()
    packed = pack(
        repeated(list(read_documents(options.text)), options.size),
        tokenizer,
        options.length,
        options.folder / "tokens.npy",
        processes=options.processes,
    )
    seconds = time.monotonic() - begun
    print(
        f"{options.size / 1e9:.2f} GB of text, {packed.tokens / 1e6:,.1f} M tokens in "
        f"{seconds:,.0f} s: {packed.tokens / seconds / 1e3:,.0f} k tokens/s with "
        f"{options.processes} processes; peak memory {_peak(resource.RUSAGE_SELF):,.0f} MB (of "
        f"these {before:,.0f} MB before packing), a tokenizing process "
        f"{_peak(resource.RUSAGE_CHILDREN):,.0f} MB"
    )
    (options.folder / "tokens.npy").unlink()
    return 0


def repeated(documents: list[Document], size: int) -> Iterator[Document]:
    """Documents in random order, again and again, until their text has a size in bytes."""
    random, written = np.random.default_rng(0), 0
    sizes = [len(one.text.encode()) for one in documents]
    while written < size:
        for index in random.permutation(len(documents)).tolist():
            yield documents[index]
            written += sizes[index]
            if written >= size:
                return


def _peak(who: int) -> float:
    """Peak resident memory in MB (Linux counts in KiB)."""
    return resource.getrusage(who).ru_maxrss / 1e3


if __name__ == "__main__":
    raise SystemExit(main())
