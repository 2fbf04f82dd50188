"""A model's draft head: what it drafts, after whatever happens to its sequence."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import edgelm
from edgelm.export.pipeline import export_model
from edgelm.runtime import LanguageModel
from edgelm.runtime.engines.session import Cancelled
from edgelm.runtime.speculation.acceptance import DraftAcceptance
from edgelm.runtime.speculation.costs import StepCosts
from edgelm.runtime.speculation.drafts.head_draft import HeadDraft
from edgelm.runtime.speculation.speculator import SpeculationState
from edgelm.speculation import SpeculationMode
from tests.checkpoints.draft_heads import TorchHead, save_certain, save_with_draft_head
from tests.runtime.speculation.test_exact import OPTIONS, answer, copies, forget, prompt

CONTEXT = 256


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_with_draft_head(tmp_path_factory.mktemp("head") / "source", context=CONTEXT)


@pytest.fixture(scope="module")
def bundle(source: Path) -> Path:
    folder = source.parent / "fp32"
    export_model(source, folder, precision="fp32", gate="none", draft_head=True)
    return folder


@pytest.fixture(scope="module")
def torch_model(source: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(source, trust_remote_code=False)


@pytest.fixture
def lm(bundle: Path) -> Iterator[LanguageModel]:
    with edgelm.load(bundle, threads=1, speculation="draft") as lm:
        yield lm


@pytest.fixture(scope="module")
def _int8(source: Path) -> Iterator[LanguageModel]:
    folder = source.parent / "int8"
    export_model(source, folder, precision="int8", gate="none", draft_head=True)
    with edgelm.load(folder, threads=1, sequences=2) as lm:
        yield lm


@pytest.fixture
def int8_lm(
    _int8: LanguageModel, drafts_pay: None, monkeypatch: pytest.MonkeyPatch
) -> LanguageModel:
    """Each run checks drafts, however bad those of a random head are."""
    monkeypatch.setattr(DraftAcceptance, "expected", lambda _, count: [*range(1, count + 2)])
    _int8._sequences.speculation = state = SpeculationState()
    for _ in range(3):
        state.costs.single(1.0)
    forget(_int8)
    return _int8


class Plain:
    """Drafts by Transformers' layers, from the whole history each time.

    `since` is the first position whose hidden state the head knows.
    """

    def __init__(self, source: Path, model: Any) -> None:
        self.head = TorchHead(source).load(source)
        self.model = model

    def propose(self, history: list[int], count: int, since: int = 0) -> list[int]:
        with torch.no_grad():
            hidden = self.model.model(torch.tensor(history[:-1])[None]).last_hidden_state[0, since:]
        tokens, drafts = history[since + 1 :], list[int]()
        for _ in range(count):
            logits, states = self.head(tokens, hidden)
            drafts.append(int(logits[-1].argmax()))
            tokens, hidden = [*tokens, drafts[-1]], torch.cat([hidden, states[-1:]])
        return drafts


@pytest.fixture(scope="module")
def plain(source: Path, torch_model: Any) -> Plain:
    return Plain(source, torch_model)


def head_of(lm: LanguageModel, slot: int = 0) -> HeadDraft:
    draft = lm._sequences.slots[slot].draft
    assert isinstance(draft, HeadDraft)
    return draft


def text(seed: int, count: int) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(4, 320, count).tolist()
    return found


def run(lm: LanguageModel, tokens: list[int]) -> None:
    lm.session.advance(np.array(tokens))


def test_it_drafts_what_a_plain_computation_does(lm: LanguageModel, plain: Plain) -> None:
    """Behind a prompt, a token, checked drafts that are rejected in part, and a rewind."""
    head, history = head_of(lm), text(0, 30)
    run(lm, history[:-1])
    assert head.propose(history, 4, StepCosts()) == plain.propose(history, 4)
    run(lm, history[-1:])
    history.append(77)
    assert head.propose(history, 1, StepCosts()) == plain.propose(history, 1)
    for kept in (0, 2, 3):
        start, drafted = len(history) - 1, text(kept, 3)
        lm.session.verify(np.array([history[-1], *drafted]))
        history += [*drafted[:kept], 88 + kept]
        if kept < 3:
            lm.session.keep(start + 1 + kept)
        assert head.propose(history, 5, StepCosts()) == plain.propose(history, 5)
    lm.session.rewind(12)
    history = [*history[:12], *text(9, 8)]
    run(lm, history[12:-1])
    assert head.propose(history, 3, StepCosts()) == plain.propose(history, 3)
    lm.session.rewind(0)
    history = [99, *history[1:]]  # the same tokens behind another one
    run(lm, history[:-1])
    assert head.propose(history, 3, StepCosts()) == plain.propose(history, 3)


def test_it_is_asked_twice(lm: LanguageModel, plain: Plain) -> None:
    head, history = head_of(lm), text(1, 10)
    run(lm, history[:-1])
    expected = plain.propose(history, 3)
    assert [head.propose(history, 3, StepCosts()) for _ in range(3)] == [expected] * 3
    assert head.propose([*history[:-1], 5], 3, StepCosts()) == plain.propose([*history[:-1], 5], 3)


def test_it_begins_where_hidden_states_are_known(
    lm: LanguageModel, plain: Plain, bundle: Path
) -> None:
    """Behind a state that was restored."""
    history = text(2, 40)
    run(lm, history[:25])
    state = [array.copy() for array in lm.session.state(25)]
    with edgelm.load(bundle, threads=1, speculation="draft") as other:
        head = head_of(other)
        run(other, text(3, 35))
        other.session.restore(history[:25], state)
        assert head.propose(history[:26], 3, StepCosts()) == []
        run(other, history[25:-1])
        assert head.propose(history, 3, StepCosts()) == plain.propose(history, 3, since=25)


def test_it_begins_behind_hidden_states_that_had_to_go(
    source: Path, bundle: Path, plain: Plain, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgelm.runtime.engines.onnxruntime.host import hidden_rows

    monkeypatch.setattr(hidden_rows, "hidden_rows", lambda _: 16)
    with edgelm.load(bundle, threads=1, speculation="draft") as lm:
        head, history = head_of(lm), text(4, 60)
        run(lm, history[:-1])
        assert head.propose(history, 3, StepCosts()) == plain.propose(history, 3, since=43)
        for token in text(5, 30):  # nothing is drafted for longer than states are kept
            run(lm, history[-1:])
            history.append(token)
        assert head.propose(history, 3, StepCosts()) == plain.propose(history, 3, since=73)


def test_many_pairs_are_read_in_turns_of_a_chunk(
    lm: LanguageModel, plain: Plain, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, history, turns = head_of(lm), text(6, 50), list[int]()
    monkeypatch.setattr(head._engine, "chunk", 16)
    run(lm, history[:-1])

    @contextmanager
    def turn() -> Iterator[None]:
        turns.append(len(head._tokens))
        if len(turns) == 3:
            raise Cancelled
        yield

    with pytest.raises(Cancelled):
        head.propose(history, 3, StepCosts(), turn)
    assert turns == [0, 16, 32]
    assert head.propose(history, 3, StepCosts(), turn) == plain.propose(history, 3)
    assert turns[3:] == [32, 48], "it continues from there"


def test_at_the_end_of_its_context(lm: LanguageModel) -> None:
    head, history = head_of(lm), text(7, CONTEXT)
    run(lm, history[:-1])
    assert head.room(CONTEXT) == 1
    assert len(head.propose(history, 5, StepCosts())) == 1
    assert head.room(CONTEXT + 1) == 0
    assert head.propose([*history, 5], 5, StepCosts()) == []


def test_its_runs_are_measured(lm: LanguageModel) -> None:
    costs, history = StepCosts(), text(8, 30)
    costs.single(1.0)
    run(lm, history[:-1])
    head_of(lm).propose(history, 1, costs)
    assert costs.draft_ratio() == 0.3, "a long text is no single run"
    run(lm, history[-1:])
    head_of(lm).propose([*history, 5], 1, costs)
    assert 0 < costs.draft_ratio() < 0.3


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_same_answer(int8_lm: LanguageModel, options: dict[str, Any]) -> None:
    for seed in range(2):
        tokens = prompt(seed)
        replies = [answer(int8_lm, mode, tokens, **options) for mode in ("off", "draft", "auto")]
        assert replies[1].chunks == replies[0].chunks
        assert replies[2].chunks == replies[0].chunks
        assert replies[1].usage == replies[0].usage
        assert replies[1].timings.drafted or len(replies[1].tokens) < 3


def test_generations_of_two_sequences_and_a_third(int8_lm: LanguageModel) -> None:
    """They run by turns, and take sequences from each other."""
    options: Any = {"max_tokens": 40, "logits_processors": [copies], "temperature": 0}
    options |= {"logit_bias": dict.fromkeys(int8_lm.eos_token_ids, -100.0)}
    said = [answer(int8_lm, "off", prompt(n), **options).tokens for n in (1, 2)]
    streams = [int8_lm.stream(prompt(n), speculation="draft", **options) for n in (1, 2)]
    forget(int8_lm)
    found: list[list[int | None]] = [[], []]
    for _ in range(40):
        for tokens, stream in zip(found, streams, strict=True):
            tokens.append(next(stream).token)
    assert found == said
    for stream in streams:
        stream.close()
    forget(int8_lm)
    first = int8_lm.stream(prompt(1), speculation="draft", **options)
    for number in range(40):
        next(first)
        if number % 9 == 5:  # both sequences are taken, and what the heads have read is of others
            others = [int8_lm.stream(prompt(n), speculation="draft", max_tokens=5) for n in (5, 6)]
            for other in others:
                next(other)
            for other in others:
                other.close()
    assert first.read().timings.drafted > 40
    # Tokens that are computed again are rounded otherwise.
    assert first.reply.tokens[:6] == said[0][:6]
    again = answer(int8_lm, "draft", prompt(1), **options)
    assert again.tokens == said[0]


def test_turns_of_a_chat_and_a_saved_one(int8_lm: LanguageModel, tmp_path: Path) -> None:
    """What is drafted after a rewind, an edit and a restored state changes no answer."""
    answers: dict[SpeculationMode, list[list[int]]] = {"off": [], "draft": []}
    drafted = 0
    for mode, said in answers.items():
        forget(int8_lm)
        options: Any = {"speculation": mode, "max_tokens": 12, "temperature": 0}
        options |= {"logit_bias": dict.fromkeys(int8_lm.eos_token_ids, -100.0)}
        chat = int8_lm.chat()
        replies = [chat.send(one, **options).read() for one in ("Why?", "So?")]
        chat.save(tmp_path / f"{mode}.session")
        chat.rewind(turns=1)
        replies.append(chat.send("No?", **options).read())
        forget(int8_lm)
        chat = int8_lm.chat(session=tmp_path / f"{mode}.session")
        replies += [chat.send(one, **options).read() for one in ("How?", "Oh.")]
        said += [reply.tokens for reply in replies]
        drafted += sum(reply.timings.drafted for reply in replies)
    assert answers["draft"] == answers["off"]
    assert drafted


@pytest.mark.usefixtures("drafts_pay")
def test_a_head_that_is_right_is_used(tmp_path: Path) -> None:
    source = save_certain(tmp_path / "source", context=CONTEXT)
    export_model(source, tmp_path / "b", precision="int8", gate="none", draft_head=True)
    with edgelm.load(tmp_path / "b", threads=1, speculation="draft") as lm:
        for options in ({"temperature": 0}, {"temperature": 0.02, "seed": 1}):
            reply = answer(lm, "draft", prompt(0), max_tokens=100, **options)
            assert reply.tokens == answer(lm, "off", prompt(0), max_tokens=100, **options).tokens
            assert reply.timings.drafted > 60
            assert reply.timings.accepted > 0.8 * reply.timings.drafted


def test_less_memory_leaves_it_out(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    from edgelm.bundle import DRAFT, read_manifest
    from edgelm.devices.planner.memory.memory_need import draft_bytes, loaded_bytes

    manifest = read_manifest(bundle)
    need = loaded_bytes(manifest, CONTEXT)
    added = draft_bytes(read_manifest(bundle / DRAFT), manifest, CONTEXT)
    with edgelm.load(bundle, threads=1, max_memory=need + added // 2) as lm:
        assert lm._sequences.slots[0].draft is None
        assert "is not loaded" in caplog.text
        assert lm.generate(text(0, 5), max_tokens=3).tokens
    with edgelm.load(bundle, threads=1, max_memory=need + added) as lm:
        assert isinstance(lm._sequences.slots[0].draft, HeadDraft)
