"""Messages of a data file."""

from edgelm.compress.data.messages import read_messages


def test_text_parts_are_one_text() -> None:
    parts = [{"type": "text", "text": "Look: "}, {"type": "text", "text": "why?"}]
    given = [{"role": "user", "content": parts}, {"role": "assistant", "content": "So."}]
    user, assistant = read_messages("data.jsonl:1", "messages", given)
    assert user == {"role": "user", "content": "Look: why?"}
    assert assistant["content"] == "So."
