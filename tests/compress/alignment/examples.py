"""Chat data, chat templates and settings of the tests of alignment."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgelm.compress.alignment.settings import Dpo, Sft

MARKED = (
    "{% for m in messages %}<s>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|end|>{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
UNMARKED = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + (
    UNMARKED
)
SFT = Sft(learning_rate=3e-3, max_steps=6, batch_size=8, max_length=96, save_steps=2)
DPO = Dpo(learning_rate=1e-3, max_steps=6, batch_size=8, max_length=96, save_steps=2)
TALKS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {i}?"},
            {"role": "assistant", "content": f"It is {i} stones."},
            {"role": "user", "content": "And then?"},
            {"role": "assistant", "content": "Then it rains."},
        ]
    }
    for i in range(8)
]
PAIRS = [
    {"prompt": f"What is {i}?", "chosen": f"It is {i} stones.", "rejected": "Go away."}
    for i in range(8)
]

Write = Callable[[list[dict[str, Any]]], Path]


def call(name: str, arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "content": None, "tool_calls": [{"function": function}]}
