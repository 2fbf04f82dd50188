"""The record of a whole recipe, and which stages can be combined."""

from typing import Any, Literal

import msgspec

from edgelm.compress.distillation.settings import Distillation
from edgelm.compress.drafting.settings import DraftSettings
from edgelm.compress.puzzle.settings import PuzzleSettings
from edgelm.compress.ranges import Count, RowLength, Seed
from edgelm.compress.recipe.tables import (
    Align,
    Correct,
    DistillStage,
    Evaluate,
    ImportanceSettings,
    Prune,
    Qad,
    Synthesize,
    Target,
    Vocabulary,
)
from edgelm.compress.search.settings import SearchSettings
from edgelm.errors import BadInput
from edgelm.quantize.precision import Int4, Int8, parse_precision

_SHAPES = ("search", "prune", "puzzle", "draft")
_FEWEST_PARAMETERS = 1000  # of the smallest models of tests, which have a few thousand
_QAD_GROUP = 64  # of the layers that its figures were measured with


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole recipe; a stage without a table does not run.

    teacher: Hugging Face folder, hub id or .gguf file
    data: training text: files, folders or names for `datasets`
    held_out: text that decides between candidates and is evaluated at the end; by default 2% of the
        data, at most 512 rows
    student: an existing checkpoint with the teacher's tokenizer to start from, instead of pruning
    sequence_length: tokens per row of packed data
    max_tokens: maximum number of tokens that are packed; by default all of the data
    packing_processes: processes that tokenize; several are faster for gigabytes of text on many
        cores
    within_documents: in training, attention does not cross the documents of a row
    dtype: type of the student's weights on disk
    arithmetic: type of matrix products in every stage; auto measures which one this machine
        multiplies faster, once for a run folder
    seed: random seed of all stages
    target: the device and the budget
    synthesize: the teacher writes the data
    vocabulary: trim the vocabulary
    correct: teacher correction
    importance: importance scores
    search: search a shape within the budget
    prune: prune to a given shape
    puzzle: choose the size of each layer within the budget
    draft: make a draft model for speculative decoding
    distill: distillation
    qad: quantization-aware distillation
    align: SFT or DPO
    evaluate: evaluation tasks
    """

    teacher: str
    data: tuple[str, ...] = ()
    held_out: str | None = None
    student: str | None = None
    sequence_length: RowLength = 512
    max_tokens: Count | None = None
    packing_processes: Count = 1
    within_documents: bool = False
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    arithmetic: Literal["auto", "bf16", "fp32"] = "auto"
    seed: Seed = 0
    target: Target = Target()
    synthesize: Synthesize | None = None
    vocabulary: Vocabulary | None = None
    correct: Correct | None = None
    importance: ImportanceSettings = ImportanceSettings()
    search: SearchSettings | None = None
    prune: Prune | None = None
    puzzle: PuzzleSettings | None = None
    draft: DraftSettings | None = None
    distill: DistillStage | None = None
    qad: Qad | None = None
    align: Align | None = None
    evaluate: Evaluate | None = None

    def check(self) -> None:
        """Raise BadInput for stages that cannot be combined."""
        self._check_shape()
        if not self.data and self.synthesize is None:
            raise BadInput(
                "no data: set `data = [...]`, or add a [synthesize] table to have the teacher "
                "write it"
            )
        if not (self.shapes or any((self.distill, self.qad, self.align))):
            raise BadInput(
                "the recipe produces no student: it needs [search], [prune], [puzzle] or "
                "[draft], [distill], [qad] or [align]"
            )
        if self.qad:
            self.qad.check(self.target)
        self.importance.check()
        if self.distill:
            self.distill.check()
        self._check_layer_map()
        self._check_milestones()
        if self.max_tokens is not None and self.max_tokens < self.sequence_length:
            raise BadInput(
                f"max_tokens = {self.max_tokens:,} makes no row of sequence_length = "
                f"{self.sequence_length:,} tokens; raise it"
            )
        if self.distill and self.distill.cache and self.within_documents:
            raise BadInput(
                "[distill.cache] stores what the teacher predicts with attention over whole rows; "
                "remove it, or within_documents"
            )
        if self.align and not self.align.data:
            raise BadInput("[align] needs `data`, a JSONL file of conversations")
        if self.align:
            self.align.request(self.seed).check()

    @property
    def shapes(self) -> list[str]:
        """The tables that decide the student's shape: none, or one."""
        return [name for name in _SHAPES if getattr(self, name)]

    def _check_shape(self) -> None:
        if len(self.shapes) > 1:
            raise BadInput(
                f"[{self.shapes[0]}] and [{self.shapes[1]}] both decide the student's shape "
                "([search] and [puzzle] find one, [prune] and [draft] set one); remove one of them"
            )
        if self.student and (self.shapes or self.vocabulary):
            raise BadInput(
                "`student` names an existing student; remove it, or remove [search], [prune], "
                "[puzzle], [draft] and [vocabulary]"
            )
        count = self.target.parameters
        if count is not None and 1 < count < _FEWEST_PARAMETERS:
            raise BadInput(
                f"[target] parameters = {count:g} is a number of parameters, since it is above 1, "
                "and no model is that small; give a share of the teacher's up to 1, or a number "
                "such as 100_000_000"
            )
        if (self.search or self.puzzle) and not self.target_limits:
            raise BadInput(
                f"[{self.shapes[0]}] needs a budget: give [target] parameters, max_memory_bytes, "
                "min_tokens_per_second or max_first_token_ms"
            )
        if self.puzzle:
            self.puzzle.check()
        if self.draft and (self.vocabulary or self.correct or self.align):
            raise BadInput(
                "[draft] makes a draft model for the unchanged teacher: remove [vocabulary], "
                "[correct] and [align], which change its tokens or its answers"
            )

    def _check_milestones(self) -> None:
        if self.distill is None:
            return
        late = [one for one in self.distill.milestones if one > self.distill.tokens]
        if late:
            raise BadInput(
                f"[distill] milestones: {late[0]:,} tokens are never reached, since tokens = "
                f"{self.distill.tokens:,}; remove it"
            )

    def _check_layer_map(self) -> None:
        if self.search and self.distill and self.distill.layer_map:
            raise BadInput(
                "[distill] layer_map names layers of one student, and [search] trains students of "
                "several depths; set hidden_states = true, which maps the layers of each"
            )

    def training(self, table: msgspec.Struct, *, bf16: bool, **over: Any) -> Distillation:
        """The settings of a training: a stage's table, with what is the recipe's own.

        Args:
            table: of the stage.
            bf16: whether matrix products are in bf16.
            over: settings that replace the table's.

        Raises:
            BadInput: settings that contradict each other.
        """
        values = msgspec.structs.asdict(table)
        known = {
            field: values[field] for field in Distillation.__struct_fields__ if field in values
        }
        known |= {"sequence_length": self.sequence_length, "seed": self.seed, "bf16": bf16}
        known["within_documents"] = self.within_documents
        if isinstance(table, Correct):
            known |= {"learning_rate": self.correction_rate, "cross_entropy": 1.0}
        settings = Distillation(**(known | over))
        settings.check()
        return settings

    @property
    def correction_rate(self) -> float:
        """The learning rate of [correct]: its own, or a fifth of distillation's."""
        assert self.correct is not None
        if self.correct.learning_rate is not None:
            return self.correct.learning_rate
        return (self.distill or DistillStage()).learning_rate / 5

    @property
    def qad_group_size(self) -> int | None:
        """Group size of layers and head; None for each precision's own."""
        assert self.qad is not None
        if self.qad.group_size is not None:
            return self.qad.group_size
        return _QAD_GROUP if self.target.kernels.has_zero_points else None

    @property
    def qad_precisions(self) -> tuple[Int4 | Int8, Int4 | Int8]:
        """The precisions of layers and head in `[qad]`, as the target's engine supports them."""
        qad = self.qad
        assert qad is not None
        symmetric = qad.symmetric
        if symmetric is None and not self.target.kernels.has_zero_points:
            symmetric = True
        layers, head = (
            parse_precision(name, group_size=self.qad_group_size, symmetric=symmetric)
            for name in (qad.precision, qad.head)
        )
        assert isinstance(layers, Int4 | Int8)
        assert isinstance(head, Int4 | Int8)
        return layers, head

    @property
    def target_limits(self) -> bool:
        """Whether the target sets any limit."""
        target = self.target
        return any(
            limit is not None
            for limit in (
                target.parameters,
                target.max_memory_bytes,
                target.min_tokens_per_second,
                target.max_first_token_ms,
            )
        )
