import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from edgelm.compress.alignment.align import Aligned, align
from edgelm.compress.alignment.data import make_rows
from edgelm.compress.alignment.metrics_callback import AlignStep
from edgelm.compress.alignment.settings import Alignment
from edgelm.compress.data.conversations import read_demonstrations
from edgelm.compress.model import load_model
from edgelm.errors import BadInput, Diverged
from tests.checkpoints.own_sizes import cut
from tests.compress.alignment.examples import (
    DPO,
    MARKED,
    PAIRS,
    SFT,
    TALKS,
    UNMARKED,
    Write,
    call,
)


def _answer_loss(model: Any, tokenizer: Any) -> float:
    """Mean negative log-likelihood of the answers in TALKS, counted out by hand."""
    losses = []
    for talk in TALKS:
        ids: list[int] = []
        learned: list[bool] = []
        for message in talk["messages"]:
            parts = [f"<s>{message['role']}\n", message["content"] + "<|end|>"]
            for part, is_content in zip(parts, (False, True), strict=True):
                tokens = tokenizer(part, add_special_tokens=False)["input_ids"]
                ids += tokens
                learned += [is_content and message["role"] == "assistant"] * len(tokens)
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        losses.append(loss[torch.tensor(learned[1:])])
    return float(torch.cat(losses).mean())


@pytest.mark.parametrize(
    ("template", "examples"), [(MARKED, 8), (UNMARKED, 16)], ids=["marked", "unmarked"]
)
def test_answers_and_nothing_else_are_learned(
    student: Any, tokenizer: Any, tmp_path: Path, write: Write, template: str, examples: int
) -> None:
    tokenizer.chat_template = template
    steps = list[AlignStep]()
    before = _answer_loss(student, tokenizer)
    request = replace(SFT, batch_size=examples)
    done = align(student, tokenizer, request, write(TALKS), tmp_path / "run", progress=steps.append)
    assert done.examples == examples
    assert steps[0].loss == pytest.approx(before, rel=1e-4)
    assert _answer_loss(student, tokenizer) < 0.7 * before
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6]
    assert done == Aligned(6, examples, 0, 0, steps[-1].loss, tmp_path / "run" / "metrics.jsonl")
    rows = [json.loads(line) for line in done.metrics.read_text().splitlines()]
    assert [row["loss"] for row in rows] == [step.loss for step in steps]
    assert all(row["grad_norm"] > 0 for row in rows)


def test_prompt_and_completion_are_a_conversation_where_there_is_a_template(
    student: Any, tokenizer: Any, tmp_path: Path, write: Write
) -> None:
    request = replace(SFT, max_steps=1)
    texts = [{"prompt": f"What is {i}?", "completion": f"It is {i} stones."} for i in range(8)]
    turns = [{"messages": talk["messages"][:2]} for talk in TALKS]
    losses = []
    for name, rows in (("texts", texts), ("turns", turns)):
        done = align(student, tokenizer, request, write(rows), tmp_path / name)
        losses.append(done.loss)  # of the first update, before which nothing was learned
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_without_a_template_texts_stay_texts(
    student: Any, tokenizer: Any, tmp_path: Path, write: Write
) -> None:
    tokenizer.chat_template = None
    rows = [{"prompt": "What is it? ", "completion": f"It is {i} stones."} for i in range(8)]
    steps = list[AlignStep]()
    align(student, tokenizer, SFT, write(rows), tmp_path / "run", progress=steps.append)
    assert steps[-1].loss < 0.7 * steps[0].loss
    assert not tokenizer.eos_token  # the caller's tokenizer is as it was


def test_preferences_open_the_margin(
    student: Any, tokenizer: Any, tmp_path: Path, write: Write
) -> None:
    before = _margin(student, tokenizer)
    steps = list[AlignStep]()
    align(student, tokenizer, DPO, write(PAIRS), tmp_path / "run", progress=steps.append)
    assert steps[0].loss == pytest.approx(0.6931, abs=1e-3)  # ln 2: still the reference
    gain = _margin(student, tokenizer) - before
    assert gain > 5
    margins = [step.metrics["rewards/margins"] for step in steps]
    assert margins[0] == pytest.approx(0, abs=1e-4)
    assert 0.5 * DPO.beta * gain < margins[-1] < 1.5 * DPO.beta * gain


def _margin(model: Any, tokenizer: Any) -> float:
    def likelihood(prompt: str, answer: str) -> float:
        given = tokenizer(f"<s>user\n{prompt}<|end|><s>assistant\n")["input_ids"]
        ids = torch.tensor([given + tokenizer(f"{answer}<|end|>")["input_ids"]])
        with torch.no_grad():
            scores = model(ids).logits[0, :-1].log_softmax(-1)
        return float(scores.gather(1, ids[0, 1:, None])[len(given) - 1 :].sum())

    differences = [
        likelihood(pair["prompt"], pair["chosen"]) - likelihood(pair["prompt"], pair["rejected"])
        for pair in PAIRS
    ]
    return sum(differences) / len(differences)


def test_the_model_comes_back_with_other_weights_only(
    student: Any, tokenizer: Any, tmp_path: Path, write: Write
) -> None:
    config, generation = student.config.to_dict(), student.generation_config.to_dict()
    attributes, training = set(vars(student)), student.training
    data = write(TALKS)
    align(student, tokenizer, replace(SFT, gradient_checkpointing=True), data, tmp_path / "run")
    assert student.config.to_dict() == config
    assert student.generation_config.to_dict() == generation
    assert set(vars(student)) == attributes
    assert student.training == training
    assert student.model_tags is None
    assert not any(parameter.grad is not None for parameter in student.parameters())
    assert student(torch.tensor([[1, 5]])).logits.shape == (1, 2, 320)


@pytest.mark.slow
@pytest.mark.parametrize(("request_", "rows"), [(SFT, TALKS), (DPO, PAIRS)], ids=["sft", "dpo"])
def test_a_run_killed_while_it_saves_ends_the_same(
    tiny_chat: Path,
    tokenizer: Any,
    tmp_path: Path,
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
    request_: Alignment,
    rows: list[dict[str, Any]],
) -> None:
    data, whole, killed = write(rows), load_model(tiny_chat), load_model(tiny_chat)
    request = replace(request_, batch_size=4)
    steps, resumed = list[AlignStep](), list[AlignStep]()
    align(whole, tokenizer, request, data, tmp_path / "whole", progress=steps.append)
    save = Trainer._save_optimizer_and_scheduler

    def die(trainer: Any, folder: str) -> None:
        if trainer.state.global_step == 4:
            raise KeyboardInterrupt
        save(trainer, folder)

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", die)
    with pytest.raises(KeyboardInterrupt):
        align(killed, tokenizer, request, data, tmp_path / "killed")
    monkeypatch.undo()
    checkpoints = tmp_path / "killed" / "checkpoints"
    names = {path.name for path in checkpoints.glob("checkpoint-*")}
    assert names == {"checkpoint-2", "checkpoint-4"}
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')

    killed = load_model(tiny_chat)
    done = align(killed, tokenizer, request, data, tmp_path / "killed", progress=resumed.append)
    assert [step.step for step in resumed] == [3, 4, 5, 6]
    for ours, theirs in zip(killed.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)
    losses = [json.loads(line)["loss"] for line in done.metrics.read_text().splitlines()]
    assert losses == pytest.approx([step.loss for step in steps], rel=1e-5)
    assert {path.name for path in checkpoints.glob("checkpoint-*")} == {"checkpoint-6"}


def test_a_finished_run_is_not_trained_again(
    student: Any, tiny_chat: Path, tokenizer: Any, tmp_path: Path, write: Write
) -> None:
    data, steps = write(TALKS), list[AlignStep]()
    first = align(student, tokenizer, SFT, data, tmp_path / "run")
    again = load_model(tiny_chat)
    assert align(again, tokenizer, SFT, data, tmp_path / "run", progress=steps.append) == first
    assert not steps
    for ours, theirs in zip(again.parameters(), student.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_other_settings_are_refused_once_there_is_a_checkpoint(
    tiny_chat: Path, tokenizer: Any, tmp_path: Path, write: Write
) -> None:
    data, run = write(TALKS), tmp_path / "run"
    wild = replace(SFT, learning_rate=1e30)
    with pytest.raises(
        Diverged, match=r"is nan at step [23] of 6: .* lower learning_rate \(1e\+30"
    ):
        align(load_model(tiny_chat), tokenizer, replace(wild, save_steps=9), data, run)
    align(load_model(tiny_chat), tokenizer, SFT, data, run)
    with pytest.raises(
        BadInput, match=r"learning_rate was 0.003 and is 1e\+30; resume with the same"
    ):
        align(load_model(tiny_chat), tokenizer, wild, data, run)


def test_long_examples_are_counted(
    student: Any, tokenizer: Any, tmp_path: Path, write: Write
) -> None:
    rows = [
        {"prompt": "Why?", "completion": "Because."},
        {"prompt": "Why?", "completion": "because " * 40},
        {"prompt": "why " * 50, "completion": "Because."},
    ]
    done = align(student, tokenizer, replace(SFT, max_steps=1), write(rows), tmp_path / "run")
    assert (done.examples, done.truncated, done.dropped) == (2, 1, 1)
    with pytest.raises(BadInput, match=r"all 1 prompts fill max_length \(96 tokens\)"):
        align(student, tokenizer, SFT, write(rows[2:]), tmp_path / "other")


TOOLS = (
    "{% if tools %}<s>tools\n{{ tools | tojson }}<|end|>{% endif %}{% for m in messages %}"
    "<s>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}<call>"
    "{{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def test_calls_of_tools_are_learned_and_tools_are_read(
    student: Any, tokenizer: Any, tmp_path: Path, write: Write
) -> None:
    tokenizer.chat_template = TOOLS
    schema = {"type": "function", "function": {"name": "rain", "parameters": {}}}
    asked = {"role": "user", "content": "Will it rain?"}
    answers = [
        {"role": "tool", "tool_call_id": "1", "content": "yes"},
        {"role": "assistant", "content": "It will."},
    ]
    rows = [
        {"messages": [asked, call("rain", {"day": "now"}), *answers], "tools": [schema]},
        {"prompt": [asked], "completion": [call("other", '{"place": 1}')]},
    ]
    examples = read_demonstrations(write(rows), chat=True)
    made = make_rows(examples, tokenizer, max_length=400, vocab_size=2000).rows
    learned = [tokenizer.decode([label for label in row["labels"] if label >= 0]) for row in made]
    assert learned == [
        '<call>rain {"day": "now"}<|end|>',
        "It will.<|end|>",
        '<call>other {"place": 1}<|end|>',
    ]
    read = [tokenizer.decode(row["input_ids"]) for row in made]
    assert '"name": "rain", "parameters"' in read[0]
    assert "<s>tool\nyes<|end|>" in read[1]
    assert "tools" not in read[2]
    steps = list[AlignStep]()
    request = replace(SFT, max_length=128, max_steps=12)
    align(student, tokenizer, request, write(rows), tmp_path / "run", progress=steps.append)
    assert steps[-1].loss < 0.8 * steps[0].loss


def test_bf16_products_leave_fp32_weights(
    student: Any, tokenizer: Any, tmp_path: Path, write: Write
) -> None:
    steps = list[AlignStep]()
    before = _answer_loss(student, tokenizer)
    request = replace(SFT, precision="bf16", max_steps=2, batch_size=16)
    align(student, tokenizer, request, write(TALKS), tmp_path / "run", progress=steps.append)
    assert steps[0].loss == pytest.approx(before, rel=0.02)
    assert steps[0].loss != pytest.approx(before, rel=1e-6)
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}


def test_a_student_whose_layers_differ(
    tiny_chat: Path, tokenizer: Any, tmp_path: Path, write: Write
) -> None:
    """TRL saves it as it is in memory, which transformers cannot load again."""
    model = cut(load_model(tiny_chat))
    data, request = write(TALKS), replace(SFT, max_steps=2)
    align(model, tokenizer, request, data, tmp_path / "run")
    again = cut(load_model(tiny_chat))
    align(again, tokenizer, request, data, tmp_path / "run")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.slow
def test_ctrl_c_writes_a_checkpoint_first(
    tiny_chat: Path, tokenizer: Any, tmp_path: Path, write: Write
) -> None:
    model, data, request = load_model(tiny_chat), write(TALKS), replace(SFT, batch_size=4)

    def interrupt(step: AlignStep) -> None:
        if step.step == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        align(model, tokenizer, request, data, tmp_path / "run", progress=interrupt)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert {path.name for path in checkpoints.glob("checkpoint-*")} == {"checkpoint-3"}
    steps, model = list[AlignStep](), load_model(tiny_chat)
    align(model, tokenizer, request, data, tmp_path / "run", progress=steps.append)
    assert [step.step for step in steps] == [4, 5, 6]
