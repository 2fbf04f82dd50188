"""The tables of a recipe: one record per stage, and the target."""

from typing import Literal

import msgspec

from edgelm.compress.alignment.settings import Dpo, Sft
from edgelm.compress.distillation.cache_settings import CacheSettings
from edgelm.compress.distillation.settings import Losses, Schedule
from edgelm.compress.pruning.aggregation import Reduction
from edgelm.compress.pruning.shape import Shape
from edgelm.compress.ranges import Count, Layer, NotNegative, Part, Positive, Share
from edgelm.compress.search.settings import Budget
from edgelm.devices.kernels import Kernels, kernels_of
from edgelm.devices.profile import load_profile
from edgelm.errors import BadInput
from edgelm.planning import PlanRequest
from edgelm.quantize.precision import KvType
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.prunable import derives_mamba, following_mamba_heads, lasting_layers

REPORTED_ROWS = 64  # held-out rows, at most, behind the figures of a run


class Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every stage's table."""


class Target(Stage, frozen=True, forbid_unknown_fields=True):
    """The device and the budget of the student on it; fields that are left out set no limit.

    name: a device of `edge-devices list`
    engine: one of the device's engines; by default its first
    precision: precision of the export that is planned for
    kv: type of the key-value cache; by default the engine's
    context: tokens that the cache holds; by default the device's
    prompt: tokens of the prompt that the first token is predicted for
    parameters: maximum number of parameters outside the embeddings; up to 1, a share of the
        teacher's
    max_memory_bytes: maximum memory of the student on the device
    min_tokens_per_second: minimum decode speed
    max_first_token_ms: maximum time to first token
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
        return kernels_of(self.engine_name)

    @property
    def engine_name(self) -> str:
        """The target's engine, by its name in the profile."""
        return load_profile(self.name).engine(self.engine).name


class Correct(Schedule, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Teacher correction: fine-tune the teacher on the distillation data first.

    learning_rate: peak learning rate; by default a fifth of distillation's (arXiv 2408.11796,
        section 3.1)
    """

    tokens: Count = 500_000
    micro_batch: Count = 4
    learning_rate: Positive | None = None


class ImportanceSettings(Stage, frozen=True, forbid_unknown_fields=True):
    """Importance: calibration samples, how activations are reduced, and how layers are ranked.

    samples: rows of the data that the scores are computed on
    sequence_reduction: how activations are reduced over the tokens of a row
    batch_reduction: how activations are then reduced over the rows
    layers: how layers are ranked: `block_influence` (one pass for all layers), `loss` (the loss
        without each layer) or `block` (the loss without each contiguous block)
    layer_samples: rows that the loss or the task is measured on; by default 8 rows of the data, or
        500 of the task (an accuracy needs more rows than a loss)
    layer_task: an evaluation task whose first figure replaces the loss, e.g.
        `last_word:lambada.jsonl`
    refit: after neurons or heads are removed, adjust the remaining ones by least squares on the
        samples
    """

    samples: Count = 256
    sequence_reduction: Reduction = "mean"
    batch_reduction: Reduction = "l2"
    layers: Literal["block_influence", "loss", "block"] = "block_influence"
    layer_samples: Count | None = None
    layer_task: str = ""
    refit: bool = True

    def check(self) -> None:
        """Raise BadInput for settings that would not be used."""
        if self.layers == "block_influence" and (self.layer_task or self.layer_samples):
            name = "layer_task" if self.layer_task else "layer_samples"
            raise BadInput(
                f'[importance] {name} is not used with layers = "block_influence", which takes '
                'all scores from one pass over the samples; set layers = "loss" or "block", or '
                "remove it"
            )
        if self.layer_task.partition(":")[0] == "kl":
            raise BadInput(
                "[importance] layer_task: kl compares a student with its teacher, and layers are "
                "ranked before there is a student; use perplexity or an accuracy"
            )


class Prune(Stage, frozen=True, forbid_unknown_fields=True):
    """An explicit shape instead of a search; sizes that are left out stay the teacher's.

    Sizes that the teacher's family cannot lose are refused with the reason.

    num_hidden_layers: number of layers
    layers: the layers to keep, counted from 0, e.g. of a published student; by default by their
        scores
    hidden_size: channels of the residual stream; short convolutions (LFM2) lose as many of their
        own
    intermediate_size: neurons of each MLP, or of each shared expert; narrower MLPs keep theirs,
        double-wide ones (Gemma 4) have twice as many
    num_attention_heads: query heads of each layer that attends
    num_key_value_heads: key and value heads of each layer that attends
    num_experts: routed experts of each layer with a mixture; a token runs no more than these
    moe_intermediate_size: neurons of each routed expert
    mamba_num_heads: heads of each Mamba-2 layer; where the class derives their width from
        `hidden_size` (Granite 4 H), by default reduced by the same share
    merge_pruned_heads: add to each kept query head its difference from a pruned one (residual
        heads)
    """

    num_hidden_layers: Count | None = None
    layers: tuple[Layer, ...] = ()
    hidden_size: Count | None = None
    intermediate_size: Count | None = None
    num_attention_heads: Count | None = None
    num_key_value_heads: Count | None = None
    num_experts: Count | None = None
    moe_intermediate_size: Count | None = None
    mamba_num_heads: Count | None = None
    merge_pruned_heads: bool = False

    def shape(self, spec: DecoderSpec) -> Shape:
        """The shape of a teacher with these sizes replaced; heads of Mamba-2 layers may follow.

        Raises:
            BadInput: layers that the teacher does not have.
        """
        full = Shape.from_spec(spec)
        self._check_layers(spec)
        sizes = {field: getattr(self, field) for field in full.__struct_fields__}
        given = {field: size for field, size in sizes.items() if size is not None}
        if self.layers:
            given["num_hidden_layers"] = len(self.layers)
        if (heads := self.following_mamba_heads(spec)) is not None:
            given["mamba_num_heads"] = heads
        return msgspec.structs.replace(full, **given)

    def _check_layers(self, spec: DecoderSpec) -> None:
        layers, count = self.layers, spec.num_hidden_layers
        if layers and (missing := set(lasting_layers(spec)) - set(layers)):
            raise BadInput(
                f"[prune] layers leaves out {', '.join(map(str, sorted(missing)))}, which every "
                "student of this family keeps: others read their keys and values, or the last "
                "layer has no window; add them"
            )
        if list(layers) != sorted(set(layers)) or any(not 0 <= one < count for one in layers):
            raise BadInput(
                f"[prune] layers = {list(layers)}: expected layers to keep, each once, in "
                f"ascending order, from 0 to {count - 1}"
            )
        if layers and self.num_hidden_layers not in (None, len(layers)):
            raise BadInput(
                f"[prune] layers names {len(layers)} layers, and num_hidden_layers is "
                f"{self.num_hidden_layers}; remove one of them"
            )

    def following_mamba_heads(self, spec: DecoderSpec) -> int | None:
        """Heads of Mamba-2 layers that follow from `hidden_size`; None if they do not change."""
        hidden = self.hidden_size
        if hidden in (None, spec.hidden_size) or self.mamba_num_heads is not None:
            return None
        return following_mamba_heads(spec, hidden) if derives_mamba(spec) else None


class Vocabulary(Stage, frozen=True, forbid_unknown_fields=True):
    """Trim the vocabulary to the tokens that the data uses.

    size: number of tokens to keep; by default all that occur
    """

    size: Count | None = None


class DistillStage(Losses, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Distillation; with `cache` the teacher runs once over the data instead of in every step.

    hidden_states: add a loss on hidden states, with the paper's layer map (`default_map`); for
        students with fewer layers
    evaluate_every: tokens between measurements of KL from the teacher on held-out rows
        (`held_out.jsonl`); with `cache` they keep the teacher in memory
    milestones: numbers of tokens after which the student is saved, in `milestones/TOKENS`
    cache: store the teacher's predictions
    """

    hidden_states: bool = False
    evaluate_every: Count | None = None
    milestones: tuple[Count, ...] = ()
    cache: CacheSettings | None = None

    def check(self) -> None:
        """Raise BadInput for settings of which one would override the other."""
        hidden = "hidden_states" if self.hidden_states else "layer_map"
        if self.hidden_states and self.layer_map:
            raise BadInput(
                "[distill] hidden_states is the paper's layer map, and layer_map another one; "
                "remove one of them"
            )
        if (self.hidden_states or self.layer_map) and (self.cache or self.cross_entropy == 1):
            other = "[distill.cache]" if self.cache else "cross_entropy = 1"
            raise BadInput(
                f"[distill] {hidden} compares hidden states with those of the teacher, which "
                f"{other} does not run; remove one of them"
            )
        if self.cache and self.cross_entropy == 1:
            raise BadInput(
                "[distill] cross_entropy = 1 trains without a teacher, so that the predictions of "
                "[distill.cache] are not read; remove one of them"
            )
        if self.cache and self.on_policy:
            raise BadInput(
                "[distill] on_policy needs a live teacher to score what the student writes; remove "
                "[distill.cache]"
            )
        if self.cache and (self.loss != "forward-kl" or self.temperature != 1):
            raise BadInput(
                f'[distill] loss = "{self.loss}" at temperature {self.temperature:g} needs a live '
                "teacher: a cache serves forward-kl at temperature 1 only; remove [distill.cache], "
                "or these settings"
            )


class Qad(Schedule, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Quantization-aware distillation to the precision that export will use.

    There is no weight decay by default: it would move the weights away from their quantization
    levels.

    precision: precision of the layers
    group_size: weights per scale, of layers and head; by default 64 where the engine supports
        groups for both, or less where 64 does not divide the inputs of experts, else each
        precision's own
    symmetric: no zero points; by default only where the engine has none
    head: precision of the head
    learning_rate: peak learning rate
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
    """Evaluation tasks for teacher, pruned model and student.

    Held-out rows are always evaluated: perplexity, KL from the teacher, top-1 agreement with
    it.

    tasks: e.g. `perplexity:valid.jsonl`
    limit: rows per task; by default all
    """

    tasks: tuple[str, ...] = ()
    limit: Count | None = None


class Synthesize(Stage, frozen=True, forbid_unknown_fields=True):
    """Data written by the teacher: free text, or answers to `prompts`.

    documents: number of documents to accept
    max_new_tokens: maximum length of a document
    temperature: sampling temperature
    top_p: sample from the most probable tokens up to this probability mass
    prompts: JSONL file of questions that the teacher answers; by default it writes free text
    """

    documents: Count = 2000
    max_new_tokens: Count = 512
    temperature: NotNegative = 1.0
    top_p: Share = 0.95
    prompts: str | None = None


class Align(Stage, frozen=True, forbid_unknown_fields=True):
    """SFT or DPO on chat data; settings that are left out are the method's own.

    method: supervised fine-tuning, or direct preference optimization
    data: JSONL file: `messages` or `prompt` and answer for SFT, `chosen` and `rejected` for DPO
    epochs: passes over the data
    max_steps: maximum number of optimizer steps
    learning_rate: peak learning rate
    batch_size: examples per step, over all processes
    max_length: maximum tokens of an example
    warmup: share of the steps in which the learning rate rises
    weight_decay: weight decay of AdamW
    beta: strength of the KL penalty of DPO
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
