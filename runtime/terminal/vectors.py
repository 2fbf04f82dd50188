"""What `edge-run` prints of an embedding model: the vector of one text, as JSON."""

import json
import time

from edgelm.errors import BadInput
from edgelm.runtime.model import LanguageModel


def print_vector(model: LanguageModel, text: str | None, *, as_json: bool) -> None:
    """Print one line: the vector, the number of its text's tokens, and how long it took.

    Raises:
        BadInput: no text, or `as_json` is false: nobody reads a thousand numbers.
    """
    if text is None or not as_json:
        raise BadInput(
            f"{model.folder} is an embedding model, which generates no text; "
            "edge-run BUNDLE --json TEXT prints the vector of a text, and edge-serve serves it"
        )
    [tokens] = model.embedder.encode(text)
    started = time.perf_counter()
    [vector] = model.embedder.vectors([tokens])
    milliseconds = round(1e3 * (time.perf_counter() - started), 2)
    print(json.dumps({"embedding": vector.tolist(), "tokens": len(tokens), "ms": milliseconds}))
