"""What a recipe is going to do: tokens, work, memory and disk of every stage, without weights.

Work is counted as by Kaplan et al. 2020 (arXiv 2001.08361, table 1): two operations per weight and
token forwards, four backwards, and attention's products in addition.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from edgelm.cli import format_bytes
from edgelm.compress.data.conversations import read_prompts
from edgelm.compress.data.documents import data_files
from edgelm.compress.data.token_bytes import token_bytes
from edgelm.compress.distillation.cache_settings import CacheSettings
from edgelm.compress.distillation.settings import Distillation
from edgelm.compress.drafting.settings import CALIBRATION_ROWS, DraftSettings, positions
from edgelm.compress.durations import duration
from edgelm.compress.preflight import (
    least_vocabulary,
    puzzle_alternatives,
    puzzle_costs,
    student_spec,
)
from edgelm.compress.puzzle.alternatives import with_alternatives
from edgelm.compress.puzzle.settings import PuzzleSettings
from edgelm.compress.recipe import Recipe
from edgelm.compress.recipe.tables import REPORTED_ROWS, Align, Synthesize
from edgelm.compress.search.candidates import CostModel
from edgelm.compress.search.proposals import propose
from edgelm.devices.calibration.halves import TIMED_BYTES
from edgelm.devices.profile import load_profile
from edgelm.spec.decoder import DecoderSpec

MOST_SHARDS = 8  # of one machine; more would wait for the network at every layer
_TRAINED_BYTES = 16  # of a weight in training: itself, its gradient, two moments, each in fp32
_CHECKPOINT_BYTES = 12  # of a weight in a checkpoint: itself and the moments
_ACTIVATION_WIDTHS = 14  # of hidden_size that a layer keeps for its gradient, and 3 of the FFN's
_TEXTS_AT_A_TIME = 16  # that a teacher writes
_BYTES_PER_TOKEN = 4  # of text; English has a little more
_TEXT_SUFFIXES = (".jsonl", ".txt")


@dataclass(frozen=True, slots=True)
class StagePlan:
    """A stage: tokens that pass through it, operations, bytes of memory a process, bytes of disk.

    tokens is None where the data decides, and an estimate if `about` is set. alone: one process
    does the work, the others wait. steps: of the optimizer, in a training.
    """

    name: str
    tokens: int | None
    operations: float
    memory_bytes: int
    disk_bytes: int = 0
    alone: bool = False
    about: bool = False
    steps: int | None = None


def plan_stages(
    recipe: Recipe, spec: DecoderSpec, *, bf16: bool, sharded_over: int = 1
) -> list[StagePlan]:
    """The stages of a recipe in their order.

    Args:
        recipe: checked by `preflight`.
        spec: the teacher.
        bf16: whether models that are not trained are in bf16, as the arithmetic is.
        sharded_over: processes over which FSDP2 divides the student in training.
    """
    return list(_Stages(recipe, spec, bf16, sharded_over))


class _Stages:
    def __init__(self, recipe: Recipe, spec: DecoderSpec, bf16: bool, shards: int) -> None:
        self.recipe, self.teacher, self.bf16, self.shards = recipe, spec, bf16, shards
        self.length = recipe.sequence_length
        self.item = 2 if bf16 else 4
        self.student = self._student()
        self.about = recipe.max_tokens is None
        self.tokens = _data_tokens(recipe) if self.about else recipe.max_tokens

    def __iter__(self) -> Iterator[StagePlan]:
        recipe, teacher = self.recipe, self.teacher
        if recipe.synthesize:
            yield self._synthesis(recipe.synthesize)
        if recipe.vocabulary:
            size = 4 * teacher.parameters
            yield StagePlan("vocabulary", 0, 0, 2 * size, size, alone=True)
        packed = token_bytes(teacher.vocab_size) * (self.tokens or 0)
        yield StagePlan("data", self.tokens, 0, 0, packed, about=self.about)
        if recipe.correct:
            settings = recipe.training(recipe.correct, bf16=self.bf16)
            yield self._training("correct", settings, teacher, None)
        if recipe.shapes and not recipe.draft:
            rows = recipe.importance.samples
            tokens = rows * self.length
            work = tokens * self._forward(teacher)
            yield StagePlan("importance", tokens, work, self._resident(teacher), alone=True)
        if recipe.search:
            yield self._search()
        if recipe.puzzle:
            yield from self._puzzle(recipe.puzzle)
        if recipe.draft and recipe.draft.precision:
            tokens, size = CALIBRATION_ROWS * self.length, 4 * teacher.parameters
            work = tokens * self._forward(teacher)
            yield StagePlan("draft-target", tokens, work, 2 * size, size, alone=True)
        if recipe.search or recipe.prune or recipe.draft:
            memory = 4 * (teacher.parameters + self.student.parameters)
            name = "draft" if recipe.draft else "prune"
            yield StagePlan(name, 0, 0, memory, 4 * self.student.parameters)
        if recipe.distill:
            settings, cache = recipe.training(recipe.distill, bf16=self.bf16), recipe.distill.cache
            if cache:
                yield self._cache(cache)
            plan = self._training("distill", settings, self.student, None if cache else teacher)
            if cache and recipe.distill.evaluate_every:  # held-out text is not in the cache
                plan = replace(plan, memory_bytes=plan.memory_bytes + self._sharded(teacher))
            yield plan
        if recipe.qad:
            settings = recipe.training(recipe.qad, bf16=self.bf16)
            yield self._training("qad", settings, self.student, teacher)
        if recipe.align:
            yield self._alignment(recipe.align)
        if recipe.evaluate:
            memory = self._resident(teacher) + self._resident(self.student)
            yield StagePlan("evaluate", None, 0, memory)
        if recipe.draft:
            yield self._acceptance(recipe.draft)

    def _alignment(self, settings: Align) -> StagePlan:
        """Its examples decide tokens and, without `max_steps`, steps; DPO runs a copy as well."""
        student = self.student
        request = settings.request(self.recipe.seed)
        weights = _TRAINED_BYTES * student.parameters // self.shards
        reference = self._resident(student) if settings.method == "dpo" else 0
        disk = 2 * _CHECKPOINT_BYTES * student.parameters + 4 * student.parameters
        steps = request.max_steps or None
        return StagePlan("align", None, 0, weights + reference, disk, steps=steps)

    def _synthesis(self, settings: Synthesize) -> StagePlan:
        """The most that the teacher may write; it reads prompts, too, and texts are rejected."""
        tokens, teacher = _written_tokens(settings), self.teacher
        cached = 2 * self.item * teacher.num_hidden_layers * teacher.kv_size
        memory = self._resident(teacher) + _TEXTS_AT_A_TIME * settings.max_new_tokens * cached
        return StagePlan("synthesize", tokens, tokens * self._forward(teacher), memory, alone=True)

    def _acceptance(self, settings: DraftSettings) -> StagePlan:
        """Both models on held-out rows, with the draft before training and after it."""
        student, teacher = self.student, self.teacher
        ours, _ = positions(self.length, settings.drafted, rereads=student.is_hybrid)
        _, theirs = positions(self.length, settings.drafted, rereads=teacher.is_hybrid)
        row = ours * self._forward(student) + theirs * self._forward(teacher)
        memory = self._resident(student) + self._resident(teacher)
        rows = 2 * REPORTED_ROWS
        return StagePlan("acceptance", rows * theirs, rows * row, memory, alone=True)

    def _student(self) -> DecoderSpec:
        """The requested shape, or the largest one within the budget."""
        recipe, spec = self.recipe, self.teacher
        trimmed = least_vocabulary(recipe, spec)
        if recipe.search:
            cost = CostModel(trimmed, load_profile(recipe.target.name), recipe.target.budget)
            largest = max(propose(cost, recipe.search), key=lambda one: one.parameters)
            return largest.shape.applied_to(spec)
        if recipe.puzzle:
            found = puzzle_alternatives(recipe, spec)
            return with_alternatives(spec, puzzle_costs(recipe, trimmed).first_within(found))
        return student_spec(recipe, spec) or spec

    def _puzzle(self, settings: PuzzleSettings) -> Iterator[StagePlan]:
        teacher = self.teacher
        found = puzzle_alternatives(self.recipe, teacher)
        mlp = (teacher.mlp_inputs + 1) * teacher.hidden_size
        heads = 2 * (teacher.q_size // teacher.num_key_value_heads + teacher.head_dim)
        of_half = {"mlp": mlp, "attention": heads * teacher.hidden_size}  # for each neuron, or head
        trained = sum(of_half[one.half] * one.size for one in found)
        forward = self._forward(teacher)
        if settings.costs == "measured":
            yield StagePlan("puzzle-costs", 0, 0, TIMED_BYTES, alone=True)
        yield StagePlan(
            "puzzle-library",
            settings.tokens,
            settings.tokens * (forward + 6 * trained),
            self._resident(teacher) + _TRAINED_BYTES * trained,
            _CHECKPOINT_BYTES * trained,
        )
        tokens = (1 + len(found)) * settings.score_rows * self.length
        yield StagePlan("puzzle-scores", tokens, tokens * forward, self._resident(teacher))
        memory = 4 * (teacher.parameters + self.student.parameters)
        yield StagePlan("puzzle", 0, 0, memory, 4 * teacher.parameters)

    def _search(self) -> StagePlan:
        search = self.recipe.search
        assert search is not None
        table = self.recipe.distill
        base = Distillation() if table is None else self.recipe.training(table, bf16=self.bf16)
        schedule = search.schedule(base)
        scored = search.candidates * search.held_out_rows * self.length
        trained = search.finalists * schedule.tokens if search.kd_rounds else 0
        forward, teacher = self._forward(self.student), self._forward(self.teacher)
        work = scored * forward + trained * (3 * forward + teacher)
        return StagePlan(
            "search",
            scored + trained,
            work,
            self._resident(self.teacher) + self._trained(self.student, schedule),
            search.finalists * _CHECKPOINT_BYTES * self.student.parameters,
        )

    def _cache(self, settings: CacheSettings) -> StagePlan:
        """The teacher's pass over all of the data."""
        tokens, teacher = self.tokens, self.teacher
        positions = (tokens or 0) // self.length * (self.length - 1)
        return StagePlan(
            "cache",
            tokens,
            (tokens or 0) * self._forward(teacher),
            self._resident(teacher),
            positions * settings.bytes_per_position(teacher.vocab_size),
            about=self.about,
        )

    def _training(
        self, name: str, settings: Distillation, model: DecoderSpec, teacher: DecoderSpec | None
    ) -> StagePlan:
        passes = 4 if settings.gradient_checkpointing else 3
        work = settings.trained_tokens * passes * self._forward(model)
        memory = self._trained(model, settings)
        trained = model.parameters
        if self.recipe.draft and name == "distill":  # the teacher's embedding and head are frozen
            frozen = model.embedding_parameters * (1 if model.tie_word_embeddings else 2)
            work -= settings.trained_tokens * 2.0 * model.vocab_size * model.hidden_size
            memory -= (_TRAINED_BYTES - 4) * frozen // self.shards
            trained -= frozen
        if teacher is not None:
            work += settings.trained_tokens * self._forward(teacher)
            memory += self._sharded(teacher)
        # The last checkpoint, the one that replaces it, and the result.
        frozen_bytes = 4 * (model.parameters - trained)
        disk = 2 * (_CHECKPOINT_BYTES * trained + frozen_bytes) + 4 * model.parameters
        return StagePlan(
            name, settings.trained_tokens, work, memory, disk, steps=settings.last_step
        )

    def _forward(self, spec: DecoderSpec) -> float:
        """Operations of one token forwards: weights, head, half of the row's attention."""
        head = spec.vocab_size * spec.hidden_size
        attention = spec.num_hidden_layers * spec.num_attention_heads * spec.head_dim * self.length
        return 2.0 * (spec.active_parameters + head + attention)

    def _resident(self, spec: DecoderSpec) -> int:
        return self.item * spec.parameters

    def _sharded(self, spec: DecoderSpec) -> int:
        """A teacher in training: with FSDP2 its layers are divided, embedding and head are not."""
        whole = spec.embedding_parameters * (1 if spec.tie_word_embeddings else 2)
        return self.item * (whole + (spec.parameters - whole) // self.shards)

    def _trained(self, spec: DecoderSpec, settings: Distillation) -> int:
        tokens = settings.micro_batch * settings.sequence_length
        widths = _ACTIVATION_WIDTHS * spec.hidden_size + 3 * spec.intermediate_size
        layers = spec.num_hidden_layers * widths
        if settings.gradient_checkpointing:  # the inputs of all layers, and one layer whole
            layers = spec.num_hidden_layers * spec.hidden_size + widths
        weights = _TRAINED_BYTES * spec.parameters // self.shards
        return weights + tokens * layers * self.item


def plan_table(stages: list[StagePlan], *, operations_per_second: float, processes: int = 1) -> str:
    """The stages as text, with the time at a speed of each process."""
    head = f"{'stage':<14} {'steps':>9} {'tokens':>10} {'operations':>11} "
    head += f"{'memory':>9} {'disk':>9}  time"
    lines = [head]
    total = 0.0
    for one in stages:
        seconds = one.operations / (operations_per_second * (1 if one.alone else processes))
        total += seconds
        tokens = _count(one)
        memory = format_bytes(one.memory_bytes) if one.memory_bytes else "-"
        disk = format_bytes(one.disk_bytes) if one.disk_bytes else "-"
        steps = "-" if one.steps is None else f"{one.steps:,}"
        work = f"{one.operations:.2g}" if one.operations else "-"
        lines.append(
            f"{one.name:<14} {steps:>9} {tokens if one.tokens != 0 else '-':>10} {work:>11} "
            f"{memory:>9} {disk:>9}  {duration(seconds) if one.operations else '-'}"
        )
    speed = f"{operations_per_second / 1e12:,.3g} TFLOP/s"
    each = f" on each of {processes} processes" if processes > 1 else ""
    counted = "" if all(one.operations for one in stages) else ", without what has no time here"
    lines.append(f"together {duration(total)} at {speed}{each}{counted}; memory is a process's")
    return "\n".join(lines)


def _count(stage: StagePlan) -> str:
    if stage.tokens is None:
        return "the data's"
    about = "~" if stage.about else ""
    return about + (f"{stage.tokens / 1e6:,.1f} M" if stage.tokens >= 1e5 else f"{stage.tokens:,}")


def _data_tokens(recipe: Recipe) -> int | None:
    """About how many tokens the data has, by the size of its files; None for names of data sets.

    Fields other than the text, and JSON's own characters, make it too high; long words and other
    scripts, too low.
    """
    size = 0
    for source in recipe.data:
        files = data_files(source)
        if not files or any(file.suffix not in _TEXT_SUFFIXES for file in files):
            return None  # a name, or compressed
        size += sum(file.stat().st_size for file in files)
    return size // _BYTES_PER_TOKEN + _written_tokens(recipe.synthesize)


def _written_tokens(settings: Synthesize | None) -> int:
    """The most that the teacher may write."""
    if settings is None:
        return 0
    texts = settings.documents
    if settings.prompts:
        texts = len(read_prompts(Path(settings.prompts)))
    return texts * settings.max_new_tokens
