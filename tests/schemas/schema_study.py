"""How many JSON schemas a model of random weights answers with valid JSON.

    python -m tests.schemas.schema_study 500

It exports a tiny model and generates, for each schema of json_schemas.py, with a sampling of its
own. Prints what was not valid, and the counts.
"""

import collections
import json
import sys
import tempfile
import time
from pathlib import Path

import edgelm
from edgelm.export.pipeline import export_model
from edgelm.runtime import LanguageModel
from edgelm.runtime.generation.options import Options
from tests.checkpoints.tiny_chat import save_tiny_chat
from tests.schemas.json_check import is_valid
from tests.schemas.json_schemas import Schema, json_schemas

CONTEXT = 4096
SAMPLINGS: list[Options] = [
    {"temperature": 1.0},
    {"temperature": 1.5, "top_p": 0.95},
    {"temperature": 2.0, "top_k": 100, "repetition_penalty": 1.1},
    {"temperature": 2.0, "min_p": 0.05, "presence_penalty": 0.5},
    {"temperature": 2.0, "typical_p": 0.9},
]


def save_bundle(folder: Path) -> Path:
    """Export the random model to `folder`."""
    with tempfile.TemporaryDirectory() as source:
        save_tiny_chat(Path(source), context=CONTEXT)
        export_model(Path(source), folder, precision="fp32")
    return folder


def outcome(lm: LanguageModel, schema: Schema, number: int) -> tuple[str, str]:
    """valid, invalid or length (the context was full); and the text."""
    quote = int(lm.tokenizer.encode('"')[0])
    options: Options = {
        **SAMPLINGS[number % len(SAMPLINGS)],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"schema": schema, "strict": True},
        },
        "seed": number,
        # A random model closes a string once in 300 tokens; this makes it some 15.
        "logit_bias": {quote: 3.0},
    }
    reply = lm.generate("{", **options)
    if reply.finish_reason == "length":
        return "length", reply.text
    try:
        return ("valid" if is_valid(json.loads(reply.text), schema) else "invalid"), reply.text
    except ValueError:
        return "invalid", reply.text


def main(count: int) -> None:
    """Run the study."""
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        bundle = save_bundle(Path(folder) / "bundle")
        started = time.perf_counter()
        with edgelm.load(bundle) as lm:
            for number, schema in enumerate(json_schemas(count)):
                result, text = outcome(lm, schema, number)
                counts[result] += 1
                if result != "valid":
                    print(f"{number} {result}: {json.dumps(schema)}\n  {text[:300]!r}")
    print(f"{dict(counts)} of {count} schemas in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]))
