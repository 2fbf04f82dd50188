"""The tables of a recipe: one record per stage, and the target."""

from typing import Literal

import msgspec

from edgelm.compress.alignment.settings import Dpo, Sft
from edgelm.compress.distillation.cache_settings import CacheSettings
from edgelm.compress.distillation.settings import Losses, Schedule
from edgelm.compress.pruning.aggregation import Reduction
from edgelm.compress.pruning.shape import Shape
from edgelm.compress.ranges import Count, NotNegative, Part, Positive, Share
from edgelm.compress.search.settings import Budget
from edgelm.devices.kernels import Kernels, kernels_of
from edgelm.devices.profile import load_profile
from edgelm.errors import BadInput
from edgelm.planning import PlanRequest
from edgelm.quantize.precision import KvType


class Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every stage's table."""


class Target(Stage, frozen=True, forbid_unknown_fields=True):
    """The device and the budget of the student on it; fields that are left out set no limit.

    parameters: outside the embeddings, as a share of the teacher's or as a number.
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
        """The budget for the search and the planner."""
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
        """The matrix kernels of the target's engine."""
        return kernels_of(load_profile(self.name).engine(self.engine).name)


class Correct(Schedule, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Teacher correction: fine-tune the teacher on the distillation data first.

    learning_rate: by default a fifth of distillation's (arXiv 2408.11796, section 3.1).
    """

    tokens: Count = 500_000
    micro_batch: Count = 4
    learning_rate: Positive | None = None


class ImportanceSettings(Stage, frozen=True, forbid_unknown_fields=True):
    """Importance: calibration samples, how activations are reduced, and how layers are ranked.

    layers: `block_influence` (one pass for all layers), `loss` (without each layer) or `block`
    (the contiguous block whose removal costs the least). The loss is measured on `layer_samples`
    rows of the data (8 by default); with `layer_task` (see `evaluate`) the task's first figure on
    as many of its rows (500 by default: an accuracy needs more rows than a loss) is used instead.
    refit: after neurons or heads are removed, let the others take over by least squares on the
    samples (`compress.pruning.refit`).
    """

    samples: Count = 256
    sequence_reduction: Reduction = "mean"
    batch_reduction: Reduction = "l2"
    layers: Literal["block_influence", "loss", "block"] = "block_influence"
    layer_samples: Count | None = None
    layer_task: str = ""
    refit: bool = True


class Prune(Stage, frozen=True, forbid_unknown_fields=True):
    """An explicit shape instead of a search; sizes that are left out stay the teacher's."""

    num_hidden_layers: Count | None = None
    hidden_size: Count | None = None
    intermediate_size: Count | None = None
    num_attention_heads: Count | None = None
    num_key_value_heads: Count | None = None
    merge_pruned_heads: bool = False

    def shape(self, full: Shape) -> Shape:
        """The shape of a teacher with these sizes replaced."""
        sizes = {field: getattr(self, field) for field in full.__struct_fields__}
        given = {field: size for field, size in sizes.items() if size is not None}
        return msgspec.structs.replace(full, **given)


class Vocabulary(Stage, frozen=True, forbid_unknown_fields=True):
    """Trim the vocabulary to the tokens that the data uses, or to `size` tokens."""

    size: Count | None = None


class DistillStage(Losses, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Distillation; with `cache` the teacher runs once over the data instead of in every step.

    hidden_states: add a loss on hidden states, with the paper's layer map (`default_map`); for
    students with fewer layers. evaluate_every: tokens between measurements of KL from the teacher
    on held-out rows (`held_out.jsonl`); with `cache` they keep the teacher in memory. milestones:
    numbers of tokens after which the student is saved, in `milestones/TOKENS`.
    """

    hidden_states: bool = False
    evaluate_every: Count | None = None
    milestones: tuple[Count, ...] = ()
    cache: CacheSettings | None = None


class Qad(Schedule, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Quantization-aware distillation to the precision that export will use.

    group_size and symmetric apply to layers and head, as export's options do. By default groups
    have 64 weights where the engine supports groups for both, else each precision's own size, and
    there are zero points where the engine has them. There is no weight decay: it would move the
    weights away from their quantization levels.
    """

    precision: Literal["int4", "int8"] = "int4"
    group_size: Count | None = None
    symmetric: bool | None = None
    head: Literal["int4", "int8"] = "int8"
    tokens: Count = 500_000
    learning_rate: Positive = 7e-5
    weight_decay: NotNegative = 0.0

    def check(self, target: Target) -> None:
        """Raise BadInput for settings that the target's engine does not support."""
        kernels = target.kernels
        if kernels.has_zero_points:
            return
        if self.symmetric is False:
            raise BadInput(
                f"[qad] symmetric = false: {kernels.engine}, the engine of {target.name}, has no "
                "zero points; remove the setting"
            )
        if self.group_size is not None and "int8" in (self.precision, self.head):
            raise BadInput(
                f"[qad] group_size = {self.group_size}: {kernels.engine}, the engine of "
                f"{target.name}, has int8 with one scale per output channel only; remove the "
                'setting, or set head = "int4"'
            )
        if self.group_size is not None and self.group_size not in kernels.int4_groups:
            raise BadInput(
                f"[qad] group_size = {self.group_size}: {kernels.engine}, the engine of "
                f"{target.name}, has int4 in groups of {', '.join(map(str, kernels.int4_groups))}"
            )


class Evaluate(Stage, frozen=True, forbid_unknown_fields=True):
    """Tasks such as `perplexity:valid.jsonl`, for teacher, pruned model and student.

    Held-out rows are always evaluated: perplexity, KL from the teacher, top-1 agreement with it.
    """

    tasks: tuple[str, ...] = ()
    limit: Count | None = None


class Synthesize(Stage, frozen=True, forbid_unknown_fields=True):
    """Data written by the teacher: free text, or answers to `prompts`."""

    documents: Count = 2000
    max_new_tokens: Count = 512
    temperature: NotNegative = 1.0
    top_p: Share = 0.95
    prompts: str | None = None


class Align(Stage, frozen=True, forbid_unknown_fields=True):
    """SFT or DPO on chat data; settings that are left out are the method's own.

    batch_size: examples per step, over all processes. max_length: tokens per example. beta: of
    DPO, how strongly it holds the student to its start.
    """

    method: Literal["sft", "dpo"] = "sft"
    data: str = ""
    epochs: Positive | None = None
    max_steps: Count | None = None
    learning_rate: Positive | None = None
    batch_size: Count | None = None
    max_length: Count | None = None
    warmup: Part | None = None
    weight_decay: NotNegative | None = None
    beta: Positive | None = None

    def request(self, seed: int) -> Sft | Dpo:
        """The method with these settings.

        Raises:
            BadInput: a setting that the method does not have.
        """
        given = {
            name: value
            for name, value in msgspec.structs.asdict(self).items()
            if name not in ("method", "data") and value is not None
        }
        if self.method == "dpo":
            return Dpo(**given, seed=seed)
        if "beta" in given:
            raise BadInput('[align] beta belongs to method = "dpo"; remove it')
        return Sft(**given, seed=seed)
