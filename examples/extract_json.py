"""Extract a record from a text: the answer is JSON that matches a schema, with any model.

Run it with the bundle that `make demo` exports; it needs `pip install "edgelm[structured]"`:

    python examples/extract_json.py build/demo/bundle "Ada, 36, moved from London to Paris."
"""

import json
import sys
from typing import Any

import edgelm

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": ["integer", "null"], "minimum": 0, "maximum": 150},
        "cities": {"type": "array", "items": {"type": "string", "maxLength": 40}, "maxItems": 4},
    },
    "required": ["name", "age", "cities"],
    "additionalProperties": False,
}


def extract(lm: edgelm.LanguageModel, text: str) -> Any:
    """The record in a text; None if the context ended before the record did."""
    messages: list[edgelm.Message] = [
        {"role": "system", "content": "Read the person out of the text, as JSON."},
        {"role": "user", "content": text},
    ]
    reply = lm.generate(
        messages,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": SCHEMA, "strict": True},
        },
    )
    return json.loads(reply.text) if reply.finish_reason == "stop" else None


def main(bundle: str, text: str) -> None:
    """Print the record."""
    with edgelm.load(bundle) as lm:
        print(json.dumps(extract(lm, text), ensure_ascii=False))


if __name__ == "__main__":
    main(*sys.argv[1:3])
