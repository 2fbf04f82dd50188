"""Search texts by meaning: with the bundle of an embedding model.

Export one, then ask:

    edge-export Qwen/Qwen3-Embedding-0.6B --target cpu -o build/embedding
    python examples/semantic_search.py build/embedding "Why is the sky blue?"
"""

import sys
from pathlib import Path

import edgelm

PASSAGES = [
    "Small molecules of air scatter blue light more than red light.",
    "A miller stops the wheel when the water outside has fallen below it.",
    "Bread rises because yeast turns sugar into carbon dioxide.",
    "Garnets are found where clay was heated and pressed.",
]


def main(bundle: str | Path, question: str) -> None:
    """Print the passages, the nearest first, with their cosines to the question."""
    with edgelm.load(bundle) as lm:
        # Models of this kind put an instruction before questions, and none before passages.
        prompts = lm.embedder.settings.prompts
        passages = lm.embed(PASSAGES)
        query = lm.embed(question, prompt="query" if "query" in prompts else None)
    cosines = (passages @ query.T)[:, 0]  # the vectors have length 1
    for at in cosines.argsort()[::-1]:
        print(f"{cosines[at]:6.3f}  {PASSAGES[at]}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
