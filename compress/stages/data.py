"""The data: text from the teacher, a smaller vocabulary, packed rows."""

import json
from pathlib import Path
from typing import Any

import torch

from edgelm.checkpoint.student import StageRecord
from edgelm.compress.data.documents import read_documents
from edgelm.compress.data.packing import pack
from edgelm.compress.model import load_tokenizer, save_model
from edgelm.compress.recipe.tables import Synthesize
from edgelm.compress.run.fingerprint import tokenizer_sha256
from edgelm.compress.stages.state import DATA_FILE, HELD_OUT_FILE, State, plain, stage_record
from edgelm.errors import BadInput


def synthesize_text(state: State, settings: Synthesize) -> None:
    """Let the teacher write the data."""
    from edgelm.compress.synthesis.plan import Answers, FreeText, vocabulary_words
    from edgelm.compress.synthesis.sampling import Sampling
    from edgelm.compress.synthesis.synthesize import Synthesis, synthesize

    prompts = settings.prompts
    kind = (
        Answers(Path(prompts))
        if prompts
        else FreeText(settings.documents, vocabulary_words(state.tokenizer))
    )
    sampling = Sampling(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=state.recipe.seed,
    )
    request = Synthesis(kind, state.source.name, sampling)

    def work(folder: Path) -> StageRecord:
        def show(so_far: Any) -> None:
            state.progress(
                f"synthesize: {so_far.documents}/{so_far.target} documents, "
                f"{so_far.tokens_s:.0f} tokens/s"
            )

        done = synthesize(
            state.load(state.teacher, state.compute),
            state.tokenizer,
            request,
            folder / "text.jsonl",
            progress=show,
        )
        figures = {"documents": done.documents, "dropped": done.dropped}
        return stage_record("synthesize", settings, figures, tokens=done.tokens)

    inputs = {
        "teacher": state.teacher_key,
        "prompts": state.hashes_of(prompts or ""),
        "seed": state.recipe.seed,
    }
    folder, _ = state.run.stage("synthesize", {**inputs, **plain(settings)}, work)
    state.data_sources = (*state.recipe.data, str(folder / "text.jsonl"))


def trim_teacher(state: State, size: int | None) -> None:
    """Trim the teacher's vocabulary; all later stages use the trimmed one."""
    from edgelm.compress.vocabulary.tokenizer import with_vocabulary
    from edgelm.compress.vocabulary.trim import trim_vocabulary

    def work(folder: Path) -> StageRecord:
        model = state.load(state.teacher, torch.float32)
        content = json.loads(state.tokenizer.backend_tokenizer.to_str())
        texts = [state.text(document) for document in state.documents()]
        trimmed = trim_vocabulary(model, content, texts, size=size)
        tokenizer = with_vocabulary(state.tokenizer, trimmed.tokenizer_json)
        save_model(trimmed.model, tokenizer, folder / "model", torch.float32)
        figures = {
            "vocab_size": len(trimmed.keep),
            "coverage": trimmed.coverage,
            "parameters_saved": trimmed.parameters_saved,
        }
        return stage_record("vocabulary", None, figures)

    inputs = {"teacher": state.teacher_key, "data": state.data_hashes(), "size": size}
    folder, key = state.run.stage("vocabulary", inputs, work)
    state.use_teacher(folder / "model", key)
    state.original = state.teacher
    state.tokenizer = load_tokenizer(state.teacher)
    state.tokenizer_key = tokenizer_sha256(state.tokenizer)


def pack_rows(state: State) -> None:
    """Pack the text into rows of tokens; some are held out."""

    def shown(count: int) -> None:
        state.progress(f"data: {count:,} tokens")

    def work(folder: Path) -> StageRecord:
        length, limit = state.recipe.sequence_length, state.recipe.max_tokens
        tokens = pack(
            state.documents(),
            state.tokenizer,
            length,
            folder / DATA_FILE,
            max_tokens=limit,
            processes=state.recipe.packing_processes,
            progress=shown,
            resumes=True,
        )
        if state.recipe.held_out:
            _pack_held_out(state, state.recipe.held_out, folder / HELD_OUT_FILE)
        return stage_record("data", None, {"tokens": tokens.tokens, "rows": len(tokens)})

    inputs = {
        "tokenizer": state.tokenizer_key,
        "data": state.data_hashes(),
        "held_out": state.hashes_of(state.recipe.held_out or ""),
        "length": state.recipe.sequence_length,
        "max_tokens": state.recipe.max_tokens,
    }
    state.data_folder, state.data_key = state.run.stage("data", inputs, work)
    _check_rows(state)


def _pack_held_out(state: State, source: str, path: Path) -> None:
    try:
        pack(read_documents(source), state.tokenizer, state.recipe.sequence_length, path)
    except BadInput as error:
        raise BadInput(f"held_out: {error}") from None


def _check_rows(state: State) -> None:
    """Raise BadInput now if a training would find fewer rows than it has in one step."""
    recipe, data = state.recipe, state.data()
    for name in ("correct", "distill", "qad", "puzzle"):
        table = getattr(recipe, name)
        if table is not None and table.batch_size > len(data):
            held_out = "" if recipe.held_out else " that are not held out"
            raise BadInput(
                f"[{name}] batch_size = {table.batch_size:,}: the data has {len(data):,} rows of "
                f"{data.length:,} tokens{held_out}, fewer than one step needs; give more text, or "
                "lower batch_size or sequence_length"
            )
