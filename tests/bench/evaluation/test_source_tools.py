"""A checkpoint is offered functions, and its calls are read, as its bundle does both."""

from pathlib import Path

import pytest

import edgelm
from edgelm.bench.evaluation.source_tools import SourceTools
from edgelm.checkpoint.source import open_checkpoint
from edgelm.compress.evaluation.backend import Call, Conversation
from edgelm.compress.evaluation.backends.student_backend import StudentBackend
from edgelm.compress.evaluation.tasks.function_calls.functions import openai_tool
from edgelm.compress.model import load_model, load_tokenizer
from edgelm.errors import BadInput

TOOL = openai_tool(
    {
        "name": "go",
        "description": "Go",
        "parameters": {"type": "dict", "properties": {"to": {"type": "string"}}},
    }
)
ASKED = Conversation(({"role": "user", "content": "?"},), (TOOL,))


@pytest.fixture(scope="module")
def tools(source: Path) -> SourceTools:
    return SourceTools(open_checkpoint(source))


def test_both_are_given_the_same_prompt(bundle: Path, tools: SourceTools) -> None:
    with edgelm.load(bundle, threads=1) as model:
        assert tools.prompt_ids(ASKED) == model.chat_tokens("?", tools=[TOOL]).tolist()


def test_a_call_is_read(tools: SourceTools, source: Path) -> None:
    tokenizer = load_tokenizer(source)
    text = '<tool_call>\n{"name": "go", "arguments": {"to": "Oslo"}}\n</tool_call>'
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tools.read(ids, ASKED) == ("", (Call("go", {"to": "Oslo"}),))
    plain = tokenizer("No call.", add_special_tokens=False)["input_ids"]
    assert tools.read(plain, ASKED) == ("No call.", ())


def test_a_recipe_is_told_where_calls_are_read(source: Path) -> None:
    student = StudentBackend(load_model(source), load_tokenizer(source))
    with pytest.raises(BadInput, match="run this task with edge-eval"):
        student.generate([ASKED], 4)


def test_a_checkpoint_that_does_not_chat_is_refused(source: Path, tmp_path: Path) -> None:
    import shutil

    bare = shutil.copytree(source, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(BadInput, match="has no chat template"):
        SourceTools(open_checkpoint(bare))
