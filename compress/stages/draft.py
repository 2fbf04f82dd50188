"""Draft models: the teacher with few of its layers, and how well it drafts."""

from pathlib import Path
from typing import Any

import msgspec
import torch

from edgelm.checkpoint.source import open_checkpoint
from edgelm.checkpoint.student import Figure, StageRecord
from edgelm.compress.data.conversations import read_prompts
from edgelm.compress.data.packing import calibration_rows
from edgelm.compress.distillation.checkpoints import remove
from edgelm.compress.drafting.acceptance import acceptance
from edgelm.compress.drafting.layers import spaced_layers
from edgelm.compress.drafting.settings import CALIBRATION_ROWS, DraftSettings
from edgelm.compress.evaluation.held_out import HeldOut, held_out_divergence
from edgelm.compress.model import Model, save_model
from edgelm.compress.pruning.depth import with_layers
from edgelm.compress.qad.fake_quantizer import FakeQuantizer
from edgelm.compress.qad.precisions import target_precisions
from edgelm.compress.qad.start import prepare_for_quantization
from edgelm.compress.stages.state import BATCH, State, plain, stage_record
from edgelm.compress.synthesis.plan import prompt_tokens
from edgelm.compress.synthesis.sampling import Sampling, sample, stop_ids
from edgelm.files.staging import replace_file
from edgelm.quantize.precision import describe

_FIGURES = "acceptance.json"


def quantize_target(state: State, settings: DraftSettings) -> None:
    """Make the teacher the model of the bundle: its weights on the grid of an export.

    They are quantized as `edge-export` does it by default, on text of the data; the engine's
    rounding of activations and of the cache is left out.
    """
    spec = state.teacher.spec
    precisions = target_precisions(state.recipe, spec)
    assert precisions is not None

    def work(folder: Path) -> StageRecord:
        model = state.load(state.teacher, torch.float32)
        before = HeldOut(model, state.held_out())
        scratch = folder / "moments.partial"
        remove(scratch)  # of an interrupted run
        scratch.mkdir()
        target = state.load(state.teacher, torch.float32)
        rows = calibration_rows(state.data(), CALIBRATION_ROWS, BATCH)
        grids = prepare_for_quantization(target, rows, *precisions, scratch)
        remove(scratch)
        with torch.no_grad():
            FakeQuantizer(target, grids).finish()
        save_model(target, state.tokenizer, folder / "model", torch.float32)
        figures = {"held_out_divergence": before.divergence(target)}
        return stage_record("draft-target", settings, figures)

    inputs = {"teacher": state.teacher_key, "data": state.data_key}
    inputs["precisions"] = ", ".join(describe(one) for one in precisions)
    folder, key = state.run.stage("draft-target", inputs, work)
    state.use_teacher(folder / "model", key)


def make_draft(state: State, settings: DraftSettings) -> None:
    """Make a student of a few of the teacher's layers."""
    layers = spaced_layers(state.original.spec, settings.num_hidden_layers)

    def work(folder: Path) -> StageRecord:
        teacher = state.load(state.original, torch.float32)
        draft = with_layers(teacher, layers)
        save_model(draft, state.tokenizer, folder / "model", torch.float32)
        loss = held_out_divergence(draft, teacher, state.held_out())
        return stage_record("draft", settings, {"layers": layers, "held_out_divergence": loss})

    inputs = {"teacher": state.teacher_key, "data": state.data_key, "layers": layers}
    folder, key = state.run.stage("draft", inputs, work)
    state.pruned = folder / "model"
    state.use_student(folder, key)


def freeze_shared(draft: Model) -> None:
    """Leave the embedding and the head as they are in training: the target's are used."""
    draft.get_input_embeddings().requires_grad_(False)
    draft.get_output_embeddings().requires_grad_(False)


def measure_acceptance(state: State, settings: DraftSettings) -> dict[str, dict[str, Figure]]:
    """How many tokens the teacher accepts of the draft before and after training."""
    assert state.student is not None
    models = {"pruned": state.pruned, "student": state.student}

    def work(folder: Path) -> StageRecord:
        target = state.load(state.teacher, state.compute)
        answers = _answers(state, settings, target) if settings.prompts else []
        figures: dict[str, dict[str, Figure]] = {}
        for name, path in models.items():
            if path is None:
                continue
            draft = state.load(open_checkpoint(path), state.compute)

            def shown(done: int, of: int, name: str = name) -> None:
                state.progress(f"acceptance: {name}, {done} of {of} rows")

            found = acceptance(draft, target, state.held_out(), settings.drafted, shown)
            if answers:
                rows, first = zip(*answers, strict=True)
                of_answers = acceptance(draft, target, rows, settings.drafted, shown, first)
                found |= {f"{task}, answers": one for task, one in of_answers.items()}
            for task, figure in found.items():
                figures.setdefault(task, {})[name] = figure
        replace_file(folder / _FIGURES, msgspec.json.encode(figures))
        values = {task: by_model["student"].value for task, by_model in figures.items()}
        return stage_record("acceptance", settings, values)

    inputs: dict[str, Any] = {
        "student": state.student_key,
        "teacher": state.teacher_key,
        "data": state.data_key,
    }
    inputs |= {"arithmetic": state.arithmetic, **plain(settings)}
    inputs |= {"prompts": state.hashes_of(settings.prompts)}
    folder, _ = state.run.stage("acceptance", inputs, work)
    content = (folder / _FIGURES).read_bytes()
    return msgspec.json.decode(content, type=dict[str, dict[str, Figure]])


def _answers(
    state: State, settings: DraftSettings, target: Model
) -> list[tuple[torch.Tensor, int]]:
    """The target's greedy answers: int64 tokens [T] of prompt and answer, and where that begins."""
    found = []
    prompts = read_prompts(Path(settings.prompts))
    stop = stop_ids(target, state.tokenizer)
    for number, prompt in enumerate(prompts):
        state.progress(f"acceptance: answer {number + 1} of {len(prompts)}")
        ids = prompt_tokens(state.tokenizer, prompt)
        room = target.config.max_position_embeddings - len(ids)
        if room <= settings.drafted:
            continue  # it leaves no room for an answer in the context
        sampling = Sampling(temperature=0, max_new_tokens=min(settings.answer_tokens, room))
        generator = torch.Generator(target.device)  # unused at temperature 0
        size = len(state.tokenizer)
        [answer] = sample(target, [ids], sampling, generator, stop=stop, vocab_size=size)
        if len(answer.ids) > settings.drafted:
            found.append((torch.tensor([*ids, *answer.ids]), len(ids)))
    if len(found) < len(prompts):
        state.run.report(
            f"acceptance: {len(prompts) - len(found)} of {len(prompts)} prompts are left out, "
            f"whose answers have no more than drafted = {settings.drafted} tokens, or no room"
        )
    return found
