"""Chat templates: published ones with pieces exchanged, escapes, bombs."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from edgelm.runtime.text import template_budget
from edgelm.runtime.text.chat import ChatTemplate
from tests.fuzz.bytewise import mutate_bytes
from tests.fuzz.kind import Case, Kind, Opened
from tests.fuzz.outcome import Wrong
from tests.fuzz.template_parts import BLOCKS, BOMBS, ESCAPES, EXPRESSIONS, STATEMENTS, WHOLE
from tests.fuzz.watch import watching

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
CONVERSATION: list[Any] = [
    {"role": "system", "content": "Be brief & <b>bold</b>."},
    {"role": "user", "content": "Why is the sky blue? é 🦙"},
    {"role": "assistant", "content": "  Scattering.\n"},
    {"role": "user", "content": 'And "red"? {{ 7 * 7 }}'},
]
_ADDRESS = re.compile(r"0x[0-9a-f]+")
_MOST_TEXT = 50_000_000
_SIGNS = ("{{", "}}", "{%", "%}", "{%-", "-%}", "{#", "#}", "|", "(", ")", "[", "]", "'", '"', "=")


class Templates(Kind):
    """A template gives the text that transformers gives, or is refused; it does nothing else."""

    name = "template"

    def prepare(self, folder: Path) -> None:
        for text in WHOLE:
            _render(text)
            path = folder / "chat_template.jinja"
            path.write_text(text, encoding="utf-8")
            ChatTemplate(path, special_tokens=TOKENS).render(CONVERSATION)

    def make(self, rng: Random, folder: Path) -> Case:
        # A fifth of the usual: what outlasts it is what nothing counts, and that shows as well.
        # Set here, in a child of its own: other tests render within the usual one.
        template_budget._MAX_SECONDS = 0.2
        change = rng.choice((_exchanged, _exchanged, _exchanged, _bomb, _bomb, _escape, _bytes))
        data, note = change(rng)
        (folder / "chat_template.jinja").write_bytes(data)
        return Case(note)

    def check(self, folder: Path, case: Case, reference: Callable[[], None]) -> Opened:
        path = folder / "chat_template.jinja"
        messages = copy.deepcopy(CONVERSATION)
        template = ChatTemplate(path, special_tokens=TOKENS)
        with watching() as seen:
            text = template.render(messages)
        reference()
        if seen.opened or seen.events:
            raise Wrong(f"rendering opened {seen.opened} and did {seen.events}")
        if messages != CONVERSATION:
            raise Wrong("the template changed the conversation")
        if len(text) > _MOST_TEXT:
            raise Wrong(f"a prompt of {len(text)} characters")
        if case.note.startswith("bomb"):
            return "other"  # transformers has no limits
        theirs = _render(path.read_text(encoding="utf-8"))
        if _ADDRESS.sub("", text) != _ADDRESS.sub("", theirs) and not _varies(case.note):
            raise Wrong(f"the text is {text[:80]!r}, transformers gives {theirs[:80]!r}")
        return "equal"


def _render(text: str) -> str:
    options: dict[str, Any] = dict(TOKENS)
    rendered: Any = render_jinja_template(
        conversations=[copy.deepcopy(CONVERSATION)],
        chat_template=text,
        add_generation_prompt=True,
        tools=None,
        documents=None,
        **options,
    )
    return str(rendered[0][0])


def _varies(note: str) -> bool:
    """Whether a template says something else every time, or names the environment's own objects."""
    return any(word in note for word in ("lipsum", "random", "strftime_now", "loop", "self"))


def _exchanged(rng: Random) -> tuple[bytes, str]:
    """A published template with expressions and statements of other ones in it."""
    text = rng.choice(WHOLE)
    note = ""
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.choice([0, len(text), *(i for i, c in enumerate(text) if c == "{")])
        piece = rng.choice(
            (
                "{{ " + rng.choice(EXPRESSIONS) + " }}",
                rng.choice(STATEMENTS),
                "{{ "
                + rng.choice(EXPRESSIONS)
                + rng.choice((" + ", " ~ ", " * ", " | length + "))
                + rng.choice(EXPRESSIONS)
                + " }}",
                "{% for q in " + rng.choice(EXPRESSIONS) + " %}{{ q }}{% endfor %}",
                "{% if " + rng.choice(EXPRESSIONS) + " %}y{% endif %}",
                rng.choice(_SIGNS),
            )
        )
        text = text[:at] + piece + text[at:]
        note += f" {piece[:80]}"
    return text.encode("utf-8", "surrogatepass"), f"with{note}"


def _bomb(rng: Random) -> tuple[bytes, str]:
    if rng.random() < 0.5:
        text = rng.choice(BLOCKS)
        return text.encode(), f"bomb {text[:120]}"
    expression = rng.choice(BOMBS)
    form = rng.choice(
        ("{{ %s }}", "{{ (%s) | length }}", "{%% set x = %s %%}", "{{ messages }}{{ %s }}")
    )
    text = form % expression
    return text.encode(), f"bomb {text}"


def _escape(rng: Random) -> tuple[bytes, str]:
    expression = rng.choice(ESCAPES)
    form = rng.choice(
        ("{{ %s }}", "{%% set x = %s %%}{{ x }}", "{%% for x in %s %%}{{ x }}{%% endfor %%}")
    )
    text = form % expression
    return text.encode(), f"escape self {text}"


def _bytes(rng: Random) -> tuple[bytes, str]:
    data = rng.choice(WHOLE).encode()
    changed, note = mutate_bytes(rng, data)
    return changed, note
