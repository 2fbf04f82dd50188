"""A recipe: from which teacher, for which device, by which stages.

A TOML file with a table for every stage that is to run, in the order of `STAGES` whatever their
order in the file:

    teacher = "HuggingFaceTB/SmolLM2-135M-Instruct"
    data = ["train.jsonl"]

    [target]
    name = "jetson-orin-nano"
    min_tokens_per_second = 30

    [search]
    [distill]
    tokens = 2_000_000
    [evaluate]
    tasks = ["perplexity:valid.jsonl"]
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgelm.compress.distillation.teacher_cache import CacheSettings
from edgelm.compress.distillation.train import Distillation
from edgelm.compress.pruning.importance import Reduction
from edgelm.compress.pruning.shape import Shape
from edgelm.compress.ranges import Count, NotNegative, Positive, Seed, Share
from edgelm.compress.search import Budget, SearchSettings
from edgelm.devices.kernels import Kernels, kernels_of
from edgelm.devices.profile import load_profile
from edgelm.errors import BadInput
from edgelm.files.toml_files import convert_toml, read_toml
from edgelm.planning import PlanRequest
from edgelm.quantize.precision import Int4, Int8, KvType, parse_precision

_QAD_GROUP = 64  # of the layers that its figures were measured with


class Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The base of every stage's table."""


class Target(Stage, frozen=True, forbid_unknown_fields=True):
    """The device and what the student may cost on it; what is left out is no limit.

    parameters: outside the embeddings, as a share of the teacher's or a number.
    """

    name: str = "cpu"
    engine: str | None = None
    precision: str = "auto"
    kv: KvType | None = None
    context: Count | None = None
    prompt: Count = 512
    parameters: Positive | None = None
    max_memory_bytes: Count | None = None
    min_tokens_per_second: Positive | None = None
    max_first_token_ms: Positive | None = None

    @property
    def budget(self) -> Budget:
        """What the search asks the planner."""
        request = PlanRequest(
            precision=self.precision,
            kv=self.kv,
            context=self.context,
            engine=self.engine,
            prompt=self.prompt,
            max_memory_bytes=self.max_memory_bytes,
            min_tokens_per_second=self.min_tokens_per_second,
        )
        return Budget(self.parameters, self.max_first_token_ms, request)

    @property
    def kernels(self) -> Kernels:
        """What the matrix kernels of the engine take."""
        return kernels_of(load_profile(self.name).engine(self.engine).name)


class Correct(Stage, frozen=True, forbid_unknown_fields=True):
    """Teacher correction: the teacher is first fine-tuned on the data that distillation uses.

    The rate is a fifth of distillation's (arXiv 2408.11796, section 3.1).
    """

    tokens: Count = 500_000
    learning_rate: Positive = 1e-4
    batch_size: Count = 8
    micro_batch: Count = 4


class Calibrate(Stage, frozen=True, forbid_unknown_fields=True):
    """Importance: samples to score on, aggregation, and how layers are judged.

    layers: `influence` (one pass for all), `loss` (without each layer) or `block` (the contiguous
    block whose loss costs least). The loss is that of `layer_samples` rows of the data, or the
    first figure of `layer_task` (see `evaluate`) on so many of its rows.
    """

    samples: Count = 256
    tokens: Reduction = "mean"
    over_samples: Reduction = "l2"
    layers: Literal["influence", "loss", "block"] = "influence"
    layer_samples: Count = 8
    layer_task: str = ""


class Prune(Stage, frozen=True, forbid_unknown_fields=True):
    """An explicit shape instead of a search; sizes that are left out stay as they are."""

    num_hidden_layers: Count | None = None
    hidden_size: Count | None = None
    intermediate_size: Count | None = None
    num_attention_heads: Count | None = None
    num_key_value_heads: Count | None = None
    fold_heads: bool = False

    def shape(self, full: Shape) -> Shape:
        """The shape of a teacher with these sizes replaced."""
        asked = {field: getattr(self, field) for field in full.__struct_fields__}
        return msgspec.structs.replace(full, **{k: v for k, v in asked.items() if v is not None})


class Vocabulary(Stage, frozen=True, forbid_unknown_fields=True):
    """Trim the vocabulary to what the data uses, or to `size` tokens."""

    size: Count | None = None


class Distil(Distillation, frozen=True, forbid_unknown_fields=True):
    """Distillation; with `cache` the teacher runs once over the data instead of in every step.

    hidden_states: compare hidden states too, by the paper's map of layers (`default_map`); for
    students that lost layers.
    """

    hidden_states: bool = False
    cache: CacheSettings | None = None


class Qad(Stage, frozen=True, forbid_unknown_fields=True):
    """Quantization-aware distillation to the precision that export will use.

    group_size and symmetric are of layers and head alike, as export's options are; None is groups
    of 64 where the engine has groups for both, else each precision's own, and no zero points for
    engines that have none. Weights do not decay: that would move them off the levels that they
    are on.
    """

    precision: Literal["int4", "int8"] = "int4"
    group_size: int | None = None
    symmetric: bool | None = None
    head: Literal["int4", "int8"] = "int8"
    tokens: Count = 500_000
    learning_rate: Positive = 7e-5
    weight_decay: NotNegative = 0.0
    batch_size: Count = 8
    micro_batch: Count = 8

    def check(self, target: Target) -> None:
        """Raise BadInput for what the target's engine does not have."""
        kernels = target.kernels
        if kernels.grouped:
            return
        if self.symmetric is False:
            raise BadInput(
                f"[qad] symmetric = false: {kernels.engine}, which {target.name} runs, has no zero "
                "points; leave it out"
            )
        if self.group_size is not None and "int8" in (self.precision, self.head):
            raise BadInput(
                f"[qad] group_size = {self.group_size}: {kernels.engine}, which {target.name} "
                "runs, has int8 with one scale per output channel only; leave it out, or set "
                'head = "int4"'
            )
        if self.group_size is not None and self.group_size not in kernels.int4_groups:
            raise BadInput(
                f"[qad] group_size = {self.group_size}: {kernels.engine}, which {target.name} "
                f"runs, has int4 in groups of {', '.join(map(str, kernels.int4_groups))}"
            )


class Evaluate(Stage, frozen=True, forbid_unknown_fields=True):
    """Tasks such as `perplexity:valid.jsonl`, judged for teacher, pruned model and student.

    Held-out rows are always judged: perplexity, KL to the teacher, agreement with it.
    """

    tasks: tuple[str, ...] = ()
    limit: Count | None = None


class Synthesize(Stage, frozen=True, forbid_unknown_fields=True):
    """Text from the teacher, where there is none: free, or answers to `prompts`."""

    documents: Count = 2000
    max_new_tokens: Count = 512
    temperature: NotNegative = 1.0
    top_p: Share = 0.95
    prompts: str | None = None


class Align(Stage, frozen=True, forbid_unknown_fields=True):
    """SFT or DPO on chat data."""

    method: Literal["sft", "dpo"] = "sft"
    data: str = ""
    epochs: Positive = 1.0
    learning_rate: Positive = 1e-5


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of it; a stage that is None does not run.

    data: files, folders or `datasets` names. held_out: text to judge candidates on; else a
    fiftieth of the data is set apart. student: a checkpoint with the teacher's tokenizer to go on
    with, instead of cutting one from the teacher. dtype: of the student's file.
    """

    teacher: str
    data: tuple[str, ...] = ()
    held_out: str | None = None
    student: str | None = None
    sequence_length: Count = 512
    max_tokens: Count | None = None
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    seed: Seed = 0
    target: Target = Target()
    synthesize: Synthesize | None = None
    vocabulary: Vocabulary | None = None
    correct: Correct | None = None
    importance: Calibrate = Calibrate()
    search: SearchSettings | None = None
    prune: Prune | None = None
    distill: Distil | None = None
    qad: Qad | None = None
    align: Align | None = None
    evaluate: Evaluate | None = None

    def check(self) -> None:
        """Raise BadInput for stages that cannot go together."""
        if self.search and self.prune:
            raise BadInput("[search] finds a shape and [prune] names one; remove one of them")
        if self.student and (self.search or self.prune or self.vocabulary):
            raise BadInput(
                "`student` is there already; remove it, or [search], [prune] and [vocabulary]"
            )
        if self.search and not self.target_limits:
            raise BadInput(
                "[search] needs a budget: give [target] parameters, max_memory_bytes, "
                "min_tokens_per_second or max_first_token_ms"
            )
        if not self.data and self.synthesize is None:
            raise BadInput(
                "no data: give `data = [...]`, or a [synthesize] table: then the teacher writes it"
            )
        if not any((self.search, self.prune, self.distill, self.qad, self.align)):
            raise BadInput(
                "the recipe makes no student: it needs [search] or [prune], [distill], [qad] or "
                "[align]"
            )
        if self.qad:
            self.qad.check(self.target)
        self._check_batches()
        if self.align and not self.align.data:
            raise BadInput("[align] needs `data`, a JSONL file of conversations")

    def _check_batches(self) -> None:
        """Now, and not after the hours of the stages before."""
        stages = {"correct": self.correct, "distill": self.distill, "qad": self.qad}
        for name, stage in stages.items():
            if stage and stage.batch_size % stage.micro_batch:
                raise BadInput(
                    f"[{name}] batch_size {stage.batch_size} is not a multiple of micro_batch "
                    f"{stage.micro_batch}; change one of them"
                )

    @property
    def qad_group_size(self) -> int | None:
        """Of layers and head; None if both are to have their precision's own."""
        assert self.qad is not None
        if self.qad.group_size is not None:
            return self.qad.group_size
        return _QAD_GROUP if self.target.kernels.grouped else None

    @property
    def rounding(self) -> tuple[Int4 | Int8, Int4 | Int8]:
        """What `[qad]` rounds layers and head to, as the target's engine has it."""
        qad = self.qad
        assert qad is not None
        symmetric = qad.symmetric
        if symmetric is None and not self.target.kernels.grouped:
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
        """Whether the target limits anything."""
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


def read_recipe(path: Path) -> Recipe:
    """Read a recipe; files in it are relative to the recipe's folder.

    Raises:
        BadInput: not TOML, or a field that is unknown, missing, of the wrong type or out of range;
            names it. Or stages that cannot go together.
    """
    try:
        values = read_toml(path)
    except OSError as error:
        raise BadInput(f"cannot read the recipe {path}: {error.strerror}") from None
    recipe = convert_toml(values, Recipe, path)
    recipe.check()
    return _resolved(recipe, path.parent)


def recipe_toml(recipe: Recipe) -> str:
    """A recipe as TOML, which `read_recipe` reads back."""
    return "\n".join(_toml_lines(msgspec.to_builtins(recipe), ""))[1:] + "\n"


def _toml_lines(table: dict[str, Any], name: str) -> Iterator[str]:
    yield f"\n[{name}]" if name else ""
    known = {key: value for key, value in table.items() if value is not None}
    for key, value in known.items():
        if not isinstance(value, dict):
            # JSON's numbers, strings and lists are TOML's too.
            yield f"{key} = {json.dumps(value, ensure_ascii=False)}"
    for key, value in known.items():
        if isinstance(value, dict):
            yield from _toml_lines(value, f"{name}.{key}" if name else key)


def _resolved(recipe: Recipe, folder: Path) -> Recipe:
    def resolve(name: str) -> str:
        beside = folder / name
        try:
            return str(beside) if name and beside.exists() else name
        except OSError:  # too long for a file's name; whoever opens it says so
            return name

    def resolve_task(task: str) -> str:
        kind, _, name = task.partition(":")
        return f"{kind}:{resolve(name)}" if name else task

    changed: dict[str, Any] = {
        "teacher": resolve(recipe.teacher),
        "data": tuple(map(resolve, recipe.data)),
        "held_out": recipe.held_out and resolve(recipe.held_out),
        "student": recipe.student and resolve(recipe.student),
        "importance": msgspec.structs.replace(
            recipe.importance, layer_task=resolve_task(recipe.importance.layer_task)
        ),
    }
    if recipe.evaluate:
        tasks = tuple(map(resolve_task, recipe.evaluate.tasks))
        changed["evaluate"] = msgspec.structs.replace(recipe.evaluate, tasks=tasks)
    if recipe.align:
        changed["align"] = msgspec.structs.replace(recipe.align, data=resolve(recipe.align.data))
    if recipe.synthesize and recipe.synthesize.prompts:
        prompts = resolve(recipe.synthesize.prompts)
        changed["synthesize"] = msgspec.structs.replace(recipe.synthesize, prompts=prompts)
    return msgspec.structs.replace(recipe, **changed)
