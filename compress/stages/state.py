"""The state of a running recipe: the current teacher, data and student."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from edgelm.checkpoint.source import Checkpoint, open_checkpoint
from edgelm.checkpoint.student import StageRecord
from edgelm.cli import format_bytes
from edgelm.compress.arithmetic import TORCH_TYPES, Arithmetic, measure_arithmetic
from edgelm.compress.data.documents import Document, read_documents
from edgelm.compress.data.packing import PackedTokens, calibration_rows
from edgelm.compress.distillation.checkpoints import fixed_settings
from edgelm.compress.distillation.settings import Distillation
from edgelm.compress.model import (
    Model,
    Tokenizer,
    check_same_tokenizer,
    check_vocabulary,
    load_model,
    load_tokenizer,
)
from edgelm.compress.offloading import offload_layers, room_for_weights
from edgelm.compress.pruning.importance import Importance
from edgelm.compress.pruning.refit import refitted_parts
from edgelm.compress.recipe import Recipe
from edgelm.compress.recipe.tables import REPORTED_ROWS
from edgelm.compress.run.distributed import device
from edgelm.compress.run.fingerprint import tokenizer_sha256
from edgelm.compress.run.run_folder import ARITHMETIC, RunFolder, file_hashes
from edgelm.compress.search.candidates import Candidate
from edgelm.compress.sharding import shard_layers, shards_models
from edgelm.quantize.hessians import Hessians
from edgelm.spec.decoder import DecoderSpec

BATCH = 4  # rows per forward pass where nothing is trained
_MOST_HELD_OUT = 512
_HOST = torch.device("cpu")
DATA_FILE = "tokens.npy"
HELD_OUT_FILE = "held_out.npy"
MOMENTS = "moments"
Progress = Callable[[str], None]


class State:
    """The current teacher, data and student, and the hashes that identify them."""

    def __init__(self, recipe: Recipe, run: RunFolder, progress: Progress) -> None:
        self.recipe, self.run, self.progress = recipe, run, progress
        self.source = open_checkpoint(recipe.teacher)
        self.source_hash = self.source.sha256(run.hashes.sha256)
        self.teacher: Checkpoint = self.source
        self.original: Checkpoint = self.source  # the teacher before correction
        self.tokenizer: Tokenizer = load_tokenizer(self.source)
        check_vocabulary(self.source.spec.vocab_size, self.tokenizer)
        self.tokenizer_key = tokenizer_sha256(self.tokenizer)
        content = [self.source_hash, self.source.config, self.tokenizer_key]
        self.teacher_key = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        self.data_sources = recipe.data
        self.data_folder, self.data_key = run.folder / "data", ""
        self.importance_folder, self.importance_key = run.folder / "importance", ""
        self.student: Path | None = None
        self.student_key = self.teacher_key
        self.pruned: Path | None = None
        self.candidates: list[Candidate] = []
        self.device = device()
        self.arithmetic: Arithmetic = "fp32"
        if recipe.student:
            self._use_existing_student(open_checkpoint(recipe.student))

    def _use_existing_student(self, student: Checkpoint) -> None:
        """Start from an existing student instead of pruning the teacher."""
        check_same_tokenizer(self.tokenizer, load_tokenizer(student))
        self.student, self.student_key = student.path, student.sha256(self.run.hashes.sha256)

    @property
    def compute(self) -> torch.dtype:
        """The type of models that are not trained, and of matrix products in training."""
        return TORCH_TYPES[self.arithmetic]

    def choose_arithmetic(self) -> None:
        """Set the arithmetic type: the recipe's, or the faster one of this machine.

        It is measured once for a run folder, so that an interrupted run resumes with the same.
        """
        if self.recipe.arithmetic != "auto":
            self.arithmetic = self.recipe.arithmetic
            return

        def work(_: Path) -> StageRecord:
            spec = self.source.spec
            found = measure_arithmetic(self.device, spec.hidden_size, spec.intermediate_size)
            self.run.report(f"arithmetic: {found}")
            return stage_record(ARITHMETIC, None, asdict(found))

        self.run.stage(ARITHMETIC, {"device": self.device.type}, work)
        self.arithmetic = self.run.records[-1].figures["chosen"]

    def training(self, settings: Any, **over: Any) -> Distillation:
        """The settings of a training, from a stage's table and the recipe."""
        return self.recipe.training(settings, bf16=self.arithmetic == "bf16", **over)

    def documents(self) -> Iterator[Document]:
        """All documents of the data."""
        for source in self.data_sources:
            yield from read_documents(source)

    def text(self, document: Document) -> str:
        """A document's text; a conversation's through the chat template."""
        return document.rendered(self.tokenizer)

    def data_hashes(self) -> dict[str, str]:
        """Hashes of the data's files."""
        return self.hashes_of(*self.data_sources)

    def hashes_of(self, *names: str) -> dict[str, str]:
        """Hashes of the files and folders among names; other names map to themselves."""
        return file_hashes(names, self.run.hashes.sha256)

    def data(self) -> PackedTokens:
        """The rows to train on: all except held-out ones."""
        data = PackedTokens.load(self.data_folder / DATA_FILE)
        if self.recipe.held_out:
            return data
        return data.without(held_out_indices(len(data)))

    def held_out(self) -> torch.Tensor:
        """Held-out rows whose figures are reported, int64 [B, T]."""
        return self._held_out(REPORTED_ROWS, offset=1)

    def selection_rows(self, count: int) -> torch.Tensor:
        """Up to `count` held-out rows that decide between candidates, int64 [B, T].

        None of them is in `held_out`, unless a single row is held out: figures on the rows that a
        choice was made on would flatter it.
        """
        return self._held_out(count, offset=0)

    def _held_out(self, count: int, offset: int) -> torch.Tensor:
        path = self.data_folder / HELD_OUT_FILE
        if path.exists():
            rows = PackedTokens.load(path)
        else:
            data = PackedTokens.load(self.data_folder / DATA_FILE)
            rows = data.only(held_out_indices(len(data)))
        half = rows.only(np.arange(len(rows))[offset::2]) if len(rows) > 1 else rows
        return torch.cat(list(calibration_rows(half, count, count)))

    def importance(self) -> Importance:
        """The teacher's scores."""
        return Importance.load(self.importance_folder / "importance.safetensors")

    def moments(self) -> Hessians | None:
        """Second moments for `refit`, if those of all its matrices were collected."""
        folder = self.importance_folder / MOMENTS
        if not folder.is_dir():
            return None
        spec = self.teacher.spec
        # As sums: least squares do not depend on their scale.
        found = Hessians(folder, spec, parts=refitted_parts(spec), tokens=1)
        return found if found.collected else None

    def inputs(self, settings: Any, upstream: str) -> dict[str, Any]:
        """What a stage's result depends on: settings, starting point, teacher and data.

        Settings of a training that do not change its result are left out, so that it resumes on a
        machine with less memory.
        """
        keys = {
            "teacher": self.teacher_key,
            "student": self.student_key,
            "importance": self.importance_key,
        }
        chosen = {upstream: keys[upstream], "teacher": self.teacher_key, "data": self.data_key}
        chosen |= {"arithmetic": self.arithmetic}
        values = {"settings": fixed_settings(settings)}
        return {**chosen, "seed": self.recipe.seed, **values}

    def load(
        self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device | None = None
    ) -> Model:
        """A model on a device, by default this process's."""
        model = load_model(checkpoint, dtype=dtype, device=device or self.device)
        check_vocabulary(model.config.vocab_size, self.tokenizer)
        return model

    def load_to_run(
        self, checkpoint: Checkpoint, dtype: torch.dtype | None = None, beside: int = 0
    ) -> Model:
        """A model that nothing but its forward pass uses; a GPU may be too small for it.

        It leaves room for a model with `beside` parameters.
        """
        dtype = dtype or self.compute
        room, size = room_for_weights(self.device), checkpoint.spec.parameters
        room = None if room is None else max(0, room - beside * dtype.itemsize)
        if room is None or size * dtype.itemsize <= room:
            return self.load(checkpoint, dtype)
        model = self.load(checkpoint, dtype, _HOST)
        kept = offload_layers(model, self.device, room)
        self.run.report(
            f"{self.device} has room for {format_bytes(room)} of weights: {kept} of "
            f"{checkpoint.spec.num_hidden_layers} layers stay in host memory and are copied for "
            "every batch"
        )
        return model

    def load_to_prune(self) -> Model:
        """The teacher in fp32, in host memory if a GPU has no room for it and a student."""
        room, size = room_for_weights(self.device), self.teacher.spec.parameters
        if room is None or 2 * size * torch.float32.itemsize <= room:
            return self.load(self.teacher, torch.float32)
        self.run.report(f"{self.device} has no room for teacher and student in fp32: on the CPU")
        return self.load(self.teacher, torch.float32, _HOST)

    def load_teacher(self) -> Model:
        """The teacher of a training, which every process calls: with FSDP2 each has a part."""
        if not shards_models():
            return self.load(self.teacher, self.compute)
        return shard_layers(self.load(self.teacher, self.compute, _HOST), self.device)

    def load_measured_teacher(self) -> Model:
        """The teacher for held-out rows beside a training that does not run it."""
        return self.load_teacher() if shards_models() else self.load_to_run(self.teacher)

    def load_student(self) -> Model:
        """The current student in fp32; the teacher if nothing was pruned."""
        return self.load(self._student_checkpoint, torch.float32)

    @property
    def student_spec(self) -> DecoderSpec:
        """The student's decoder."""
        return self._student_checkpoint.spec

    @property
    def _student_checkpoint(self) -> Checkpoint:
        return self.teacher if self.student is None else open_checkpoint(self.student)

    def use_teacher(self, folder: Path, key: str) -> None:
        """Make the model in a folder the teacher."""
        self.teacher, self.teacher_key = open_checkpoint(folder), key
        if self.student is None:
            self.student_key = key

    def use_student(self, folder: Path, key: str) -> None:
        """Make the result of a stage the student."""
        self.student, self.student_key = folder / "model", key


def held_out_indices(rows: int) -> npt.NDArray[np.int64]:
    """The rows that are held out of the data: 2%, at most 512, spread evenly over it."""
    count = min(_MOST_HELD_OUT, max(1, rows // 50))
    return (2 * np.arange(count) + 1) * rows // (2 * count)


def stage_record(name: str, settings: Any, figures: dict[str, Any], tokens: int = 0) -> StageRecord:
    """The record of a stage; the run folder adds the time."""
    return StageRecord(name, plain(settings)["settings"] or {}, tokens, 0.0, figures)


def plain(settings: Any) -> dict[str, Any]:
    """A record as JSON types."""
    return {"settings": json.loads(msgspec.json.encode(settings))}
