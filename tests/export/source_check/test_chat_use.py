"""Which conversations a chat template takes is known before the export does any work."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from edgelm.errors import GateFailed
from edgelm.export.pipeline import export_model
from edgelm.export.source_check.chat_use import check_chat
from tests.checkpoints.tiny_chat import tiny_tokenizer
from tests.conftest import TinyFactory

EACH = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
NEEDS_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('be told') }}{% endif %}"
ONE = "{% if messages | selectattr('role', 'equalto', 'assistant') | list %}{{ 1 / 0 }}{% endif %}"
NEEDS_TOOLS = "{% if not tools %}{{ raise_exception('no tools') }}{% endif %}{{ tools[0].type }}"
NEEDS_DOCUMENTS = "{{ documents[0].title.strip() }}"
NEEDS_THINKING = "{% if enable_thinking is undefined %}{{ raise_exception('think?') }}{% endif %}"
NEEDS_EFFORT = "{{ reasoning_effort.upper() }}"
NEEDS_FOUR = "{% if messages | length < 4 %}{{ raise_exception('too short') }}{% endif %}"
BOS = "{% if bos_token != '<s>' %}{{ raise_exception('no bos') }}{% endif %}"
DATED = "{{ strftime_now('%Y') }}{{ date_string if date_string is defined else 'today' }}"


def warnings(tiny: TinyFactory, folder: Path, template: str) -> list[str]:
    (folder / "chat_template.jinja").write_text(template)
    (folder / "generation_config.json").write_text('{"bos_token_id": 1}')
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return check_chat(replace(tiny("llama").checkpoint, name="model"), folder)


@pytest.mark.parametrize("template", [EACH, DATED + EACH, "{{ messages[-1].content }}", BOS + EACH])
def test_usual_templates(tiny: TinyFactory, tmp_path: Path, template: str) -> None:
    assert warnings(tiny, tmp_path, template) == []


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (NO_SYSTEM + EACH, ["takes no system message: the chat template rejects .*no system"]),
        (NEEDS_SYSTEM + EACH, ["needs a system message in every conversation: .*be told"]),
        (NEEDS_TOOLS + EACH, ["needs tools in every conversation: .*no tools"]),
        (NEEDS_DOCUMENTS + EACH, ["needs documents in every conversation: "]),
        (NEEDS_THINKING + EACH, [r"needs an argument for thinking \(enable_thinking.*: .*think\?"]),
        (NEEDS_EFFORT + EACH, [r"needs an argument for thinking \(.*reasoning_effort"]),
        (NEEDS_FOUR + EACH, ["needs at least four messages in every conversation: .*too short"]),
        (NO_SYSTEM + NEEDS_FOUR + EACH, ["needs at least four messages in every conversation"]),
        (NEEDS_THINKING + NEEDS_SYSTEM + EACH, ["needs a system message, .* for thinking"]),
        (ONE + EACH, ["takes only one question: .*division by zero"]),
        (NO_SYSTEM + ONE + EACH, ["takes no system message", "takes only one question"]),
        ("<user><assistant>", ["writes prompts without the user's message"]),
        (
            "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}"
            "{% endfor %}",
            ["needs a system message .*the prompt is empty", "without the user's message"],
        ),
    ],
    ids=[
        *("no-system", "system", "tools", "documents", "thinking", "effort", "four"),
        *("four-without-system", "thinking-and-system"),
        *("one", "two", "nothing-of-it", "system-only"),
    ],
)
def test_conversations_that_a_template_does_not_take(
    tiny: TinyFactory, tmp_path: Path, template: str, expected: list[str]
) -> None:
    found = warnings(tiny, tmp_path, template)
    assert len(found) == len(expected)
    for line, pattern in zip(found, expected, strict=True):
        assert line.startswith("the chat template of model ")
        assert re.search(pattern, line), line


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('not for you') }}", "not for you"),
        ("{{ messages[7].content.strip() }}", "rejects this conversation"),
        ("{% for m in messages %}{{ m.content[0].text.strip() }}{% endfor %}", "rejects this"),
        pytest.param(
            "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
            "limits",
            marks=pytest.mark.slow,
        ),
        ("", "the prompt is empty"),
        ("\n {# nothing #}\n", "the prompt is empty"),
    ],
    ids=["raises", "fails", "lists-only", "endless", "empty", "blank"],
)
def test_a_template_that_renders_nothing(
    tiny: TinyFactory, tmp_path: Path, template: str, why: str
) -> None:
    message = f"renders no conversation .*{why}.*; tried: a user's message, a system message and"
    with pytest.raises(GateFailed, match=message):
        warnings(tiny, tmp_path, template)


def test_without_a_template(tiny: TinyFactory, tmp_path: Path) -> None:
    assert check_chat(tiny("llama").checkpoint, tmp_path) == []


class Seen(Exception):
    """Ends an export early."""


def source(tiny_chat: Path, folder: Path, template: str) -> Path:
    shutil.copytree(tiny_chat, folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


def test_an_export_is_refused_before_its_work(tiny_chat: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    model = source(tiny_chat, tmp_path / "model", "{{ raise_exception('not for you') }}")
    with pytest.raises(GateFailed, match=r"renders no conversation .*not for you"):
        export_model(model, tmp_path / "b", precision="int8", progress=lines.append)
    assert not (tmp_path / "b").exists()
    assert not [line for line in lines if "calibrating" in line]


@pytest.mark.parametrize(
    ("template", "gate", "expected"),
    [
        ("{{ raise_exception('not for you') }}", "off", "renders no conversation"),
        (NO_SYSTEM + EACH, "on", "takes no system message"),
    ],
    ids=["nothing", "no-system"],
)
def test_an_export_warns(
    tiny_chat: Path, tmp_path: Path, template: str, gate: Literal["on", "off"], expected: str
) -> None:
    def progress(line: str) -> None:
        if "warning: " in line and expected in line:
            raise Seen

    with pytest.raises(Seen):
        export_model(
            source(tiny_chat, tmp_path / "model", template),
            tmp_path / "b",
            precision="int8",
            gate=gate,
            progress=progress,
        )
