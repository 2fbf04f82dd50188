"""A model's assistant: what it drafts, after whatever happens to its sequence."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgelm
from edgelm.bundle import DRAFT, read_manifest
from edgelm.devices.planner.memory.memory_need import draft_bytes, loaded_bytes
from edgelm.export.pipeline import export_model
from edgelm.runtime import LanguageModel
from edgelm.runtime.speculation.acceptance import DraftAcceptance
from edgelm.runtime.speculation.costs import StepCosts
from edgelm.runtime.speculation.drafts.assistant_draft import AssistantDraft
from edgelm.runtime.speculation.speculator import SpeculationState
from edgelm.spec.assistant import STATES
from edgelm.speculation import SpeculationMode
from tests.checkpoints.assistants import TorchAssistant, save_assistant, save_certain
from tests.checkpoints.tiny_chat import save_tiny_chat
from tests.runtime.speculation.test_exact import OPTIONS, answer, copies, forget, prompt

CONTEXT = 256


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("assistant")
    options = {"context": CONTEXT, "vocab_size_per_layer_input": 320}
    model = save_tiny_chat(folder / "model", "gemma4", **options)
    return model, save_assistant(folder / "assistant", model)


@pytest.fixture(scope="module")
def bundle(source: tuple[Path, Path]) -> Path:
    model, assistant = source
    folder = model.parent / "fp32"
    export_model(model, folder, precision="fp32", gate="none", assistant=assistant)
    return folder


@pytest.fixture
def lm(bundle: Path) -> Iterator[LanguageModel]:
    with edgelm.load(bundle, threads=1, speculation="draft") as lm:
        yield lm


@pytest.fixture(scope="module")
def plain(source: tuple[Path, Path]) -> TorchAssistant:
    return TorchAssistant(*source)


@pytest.fixture(scope="module")
def _int8(source: tuple[Path, Path]) -> Iterator[LanguageModel]:
    model, assistant = source
    folder = model.parent / "int8"
    export_model(model, folder, precision="int8", gate="none", assistant=assistant)
    assert read_manifest(folder).kv == "int8"
    with edgelm.load(folder, threads=1, sequences=2) as lm:
        yield lm


@pytest.fixture
def int8_lm(
    _int8: LanguageModel, drafts_pay: None, monkeypatch: pytest.MonkeyPatch
) -> LanguageModel:
    """Each run checks drafts, however bad those of a random assistant are."""
    monkeypatch.setattr(DraftAcceptance, "expected", lambda _, count: [*range(1, count + 2)])
    _int8._sequences.speculation = state = SpeculationState()
    for _ in range(3):
        state.costs.single(1.0)
    forget(_int8)
    return _int8


def assistant_of(lm: LanguageModel, slot: int = 0) -> AssistantDraft:
    draft = lm._sequences.slots[slot].draft
    assert isinstance(draft, AssistantDraft)
    return draft


def text(seed: int, count: int) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(4, 320, count).tolist()
    return found


def run(lm: LanguageModel, tokens: list[int]) -> None:
    lm.session.advance(np.array(tokens))


def test_it_drafts_what_a_plain_computation_does(lm: LanguageModel, plain: TorchAssistant) -> None:
    """Behind a prompt, a token, checked drafts that are rejected in part, and a rewind."""
    draft, history = assistant_of(lm), text(0, 30)
    run(lm, history[:-1])
    assert draft.propose(history, 4, StepCosts()) == plain.propose(history, 4)
    assert draft.propose(history, 4, StepCosts()) == plain.propose(history, 4)
    run(lm, history[-1:])
    history.append(77)
    assert draft.propose(history, 1, StepCosts()) == plain.propose(history, 1)
    for kept in (0, 2, 3):
        start, drafted = len(history) - 1, text(kept, 3)
        lm.session.verify(np.array([history[-1], *drafted]))
        history += [*drafted[:kept], 88 + kept]
        if kept < 3:
            lm.session.keep(start + 1 + kept)
        assert draft.propose(history, 5, StepCosts()) == plain.propose(history, 5)
    lm.session.rewind(12)
    history = [*history[:12], *text(9, 8)]
    run(lm, history[12:-1])
    assert draft.propose(history, 3, StepCosts()) == plain.propose(history, 3)
    lm.session.rewind(0)
    history = [99, *history[1:]]  # the same tokens behind another one
    run(lm, history[:-1])
    assert draft.propose(history, 3, StepCosts()) == plain.propose(history, 3)


def test_where_the_cache_has_moved(lm: LanguageModel, plain: TorchAssistant) -> None:
    """It grows from a draft to the next; a few states are kept, of the longest prompt, too."""
    draft, history = assistant_of(lm), text(1, 200)
    before = lm.session.cache_bytes
    run(lm, history[:9])
    assert draft.propose(history[:10], 3, StepCosts()) == plain.propose(history[:10], 3)
    run(lm, history[9:-1])
    assert lm.session.cache_bytes > before
    assert draft.propose(history, 3, StepCosts()) == plain.propose(history, 3)
    assert draft._hidden.end - draft._hidden.start == STATES


def test_each_sequence_has_its_own_keys(bundle: Path, plain: TorchAssistant) -> None:
    texts = [text(seed, 30) for seed in (4, 5)]
    with edgelm.load(bundle, threads=1, sequences=2, speculation="draft") as lm:
        for slot, history in zip(lm._sequences.slots, texts, strict=True):
            slot.session.advance(np.array(history[:-1]))
        for number, history in enumerate(texts):
            found = assistant_of(lm, number).propose(history, 4, StepCosts())
            assert found == plain.propose(history, 4)


def test_behind_a_restored_state_it_begins_with_the_next_run(
    lm: LanguageModel, plain: TorchAssistant, bundle: Path
) -> None:
    history = text(2, 40)
    run(lm, history[:25])
    state = [array.copy() for array in lm.session.state(25)]
    with edgelm.load(bundle, threads=1, speculation="draft") as other:
        draft = assistant_of(other)
        run(other, text(3, 35))
        other.session.restore(history[:25], state)
        assert draft.propose(history[:26], 3, StepCosts()) == []
        run(other, history[25:26])
        assert draft.propose(history[:27], 3, StepCosts()) == plain.propose(history[:27], 3)


def test_at_the_end_of_its_context(lm: LanguageModel) -> None:
    draft, history = assistant_of(lm), text(7, CONTEXT)
    run(lm, history[:-1])
    assert draft.room(CONTEXT) == 1
    assert len(draft.propose(history, 5, StepCosts())) == 1
    assert draft.room(CONTEXT + 1) == 0
    assert draft.propose([*history, 5], 5, StepCosts()) == []


def test_its_runs_are_measured(lm: LanguageModel) -> None:
    costs, history = StepCosts(), text(8, 30)
    costs.single(1.0)
    run(lm, history[:-1])
    assistant_of(lm).propose(history, 2, costs)
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


def test_generations_of_two_sequences(int8_lm: LanguageModel) -> None:
    """They run by turns, each with the cache of its own sequence."""
    options: Any = {"max_tokens": 40, "logits_processors": [copies], "temperature": 0}
    options |= {"logit_bias": dict.fromkeys(int8_lm.eos_token_ids, -100.0)}
    expected = [answer(int8_lm, "off", prompt(n), **options).tokens for n in (1, 2)]
    streams = [int8_lm.stream(prompt(n), speculation="draft", **options) for n in (1, 2)]
    forget(int8_lm)
    found: list[list[int | None]] = [[], []]
    for _ in range(40):
        for tokens, stream in zip(found, streams, strict=True):
            tokens.append(next(stream).token)
    assert found == expected
    for stream in streams:
        assert stream.read().timings.drafted > 20


def test_turns_of_a_chat_and_a_saved_one(int8_lm: LanguageModel, tmp_path: Path) -> None:
    """What is drafted after a rewind, an edit and a restored state changes no answer."""
    answers: dict[SpeculationMode, list[list[int]]] = {"off": [], "draft": []}
    drafted = 0
    for mode, tokens in answers.items():
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
        tokens += [reply.tokens for reply in replies]
        drafted += sum(reply.timings.drafted for reply in replies)
    assert answers["draft"] == answers["off"]
    assert drafted


def test_a_canceled_answer_leaves_the_next_one_as_it_is(int8_lm: LanguageModel) -> None:
    options: Any = {"max_tokens": 30, "temperature": 0, "speculation": "draft"}
    expected = answer(int8_lm, "off", prompt(3), max_tokens=30, temperature=0)
    forget(int8_lm)
    calls = iter(range(1000))
    stopped = int8_lm.generate(prompt(4), cancel=lambda: next(calls) > 12, **options)
    assert stopped.finish_reason == "cancelled"
    assert int8_lm.generate(prompt(3), **options).tokens == expected.tokens


@pytest.mark.usefixtures("drafts_pay")
def test_an_assistant_that_is_right_is_used(tmp_path: Path) -> None:
    """Its model's output matrix is stored apart from the embedding, and so is its own."""
    model, assistant = save_certain(tmp_path, context=CONTEXT)
    folder = tmp_path / "bundle"
    export_model(model, folder, precision="int8", gate="none", assistant=assistant)
    with edgelm.load(folder, threads=1, speculation="draft") as lm:
        for options in ({"temperature": 0}, {"temperature": 0.02, "seed": 1}):
            reply = answer(lm, "draft", prompt(0), max_tokens=100, **options)
            assert reply.tokens == answer(lm, "off", prompt(0), max_tokens=100, **options).tokens
            assert reply.timings.drafted > 60
            assert reply.timings.accepted > 0.8 * reply.timings.drafted


def test_less_memory_leaves_it_out(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_manifest(bundle)
    need = loaded_bytes(manifest, CONTEXT)
    added = draft_bytes(read_manifest(bundle / DRAFT), manifest, CONTEXT)
    assert added > 0
    with edgelm.load(bundle, threads=1, max_memory=need + added // 2) as lm:
        assert lm._sequences.slots[0].draft is None
        assert "is not loaded" in caplog.text
        assert lm.generate(text(0, 5), max_tokens=3).tokens
    with edgelm.load(bundle, threads=1, max_memory=need + added) as lm:
        assert isinstance(lm._sequences.slots[0].draft, AssistantDraft)
