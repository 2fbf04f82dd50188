"""JSON schemas that a compiler of grammars can end badly with."""

from typing import Any

# Overflows the stack.
CHAIN: Any = {
    "$ref": "#/$defs/a0",
    "$defs": {f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(3000)} | {"a3000": {}},
}
# Takes seconds, and hundreds of megabytes.
MULTIPLES: Any = {"allOf": [{"type": "integer", "multipleOf": prime} for prime in (997, 991)]}
