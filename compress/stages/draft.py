"""Draft models: the teacher with few of its layers, and how well it drafts."""

from pathlib import Path

import msgspec
import torch

from edgelm.checkpoint.source import open_checkpoint
from edgelm.checkpoint.student import Figure, StageRecord
from edgelm.compress.drafting.acceptance import acceptance
from edgelm.compress.drafting.layers import spaced_layers
from edgelm.compress.drafting.settings import DraftSettings
from edgelm.compress.evaluation.held_out import held_out_divergence
from edgelm.compress.model import Model, save_model
from edgelm.compress.pruning.depth import with_layers
from edgelm.compress.stages.state import State, plain, stage_record
from edgelm.files.staging import replace_file

_FIGURES = "acceptance.json"


def make_draft(state: State, settings: DraftSettings) -> None:
    """Make a student of a few of the teacher's layers."""
    layers = spaced_layers(state.teacher.spec, settings.num_hidden_layers)

    def work(folder: Path) -> StageRecord:
        teacher = state.load(state.teacher, torch.float32)
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
        figures: dict[str, dict[str, Figure]] = {}
        for name, path in models.items():
            if path is None:
                continue
            draft = state.load(open_checkpoint(path), state.compute)

            def shown(done: int, of: int, name: str = name) -> None:
                state.progress(f"acceptance: {name}, {done} of {of} rows")

            found = acceptance(draft, target, state.held_out(), settings.drafted, shown)
            for task, figure in found.items():
                figures.setdefault(task, {})[name] = figure
        replace_file(folder / _FIGURES, msgspec.json.encode(figures))
        values = {task: by_model["student"].value for task, by_model in figures.items()}
        return stage_record("acceptance", settings, values)

    inputs = {"student": state.student_key, "teacher": state.teacher_key, "data": state.data_key}
    inputs |= {"arithmetic": state.arithmetic, **plain(settings)}
    folder, _ = state.run.stage("acceptance", inputs, work)
    content = (folder / _FIGURES).read_bytes()
    return msgspec.json.decode(content, type=dict[str, dict[str, Figure]])
