"""The settings of a distillation, and its learning-rate schedule."""

import math
from typing import Literal

import msgspec

from edgelm.compress.distillation.loss.layer_map import LayerMap
from edgelm.compress.distillation.loss.objective import LossKind, Objective
from edgelm.compress.ranges import Count, NotNegative, Part, Positive, Seed, Share
from edgelm.errors import BadInput

_FINAL_RATE, _FINAL_SHARE = 1e-5, 0.2  # of the peak
# Fields that say only how long to train and at which rate in which step.
LENGTH = ("tokens", "stop_after", "warmup", "schedule", "decay", "final_learning_rate")


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long and in which steps to train; shared by all trainings of a recipe.

    tokens: tokens to train on, over all steps
    batch_size: rows per optimizer step, over all processes
    micro_batch: rows per forward pass on one process
    final_learning_rate: learning rate that the schedule falls to; by default 1e-5, but at most a
        fifth of the peak
    warmup: share of the steps in which the learning rate rises
    schedule: learning rate after the warmup: `cosine` falls over all steps; `constant` stays;
        `wsd` (warmup, stable, decay; arXiv 2404.06395) falls linearly over the last `decay` share
        of the steps; until then `tokens` may be changed, and the training continues
    decay: share of the steps in which the learning rate falls with `wsd`
    weight_decay: weight decay of AdamW
    gradient_clip: maximum norm of the gradient
    gradient_checkpointing: compute activations again in the backward pass, for less memory
    compile: compile the layers (torch.compile), which takes a minute before the first step and
        makes the rest faster
    checkpoint_steps: optimizer steps between checkpoints
    """

    tokens: Count = 2_000_000
    batch_size: Count = 8
    micro_batch: Count = 8
    final_learning_rate: NotNegative | None = None
    warmup: Part = 0.03
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    decay: Share = 0.2
    weight_decay: NotNegative = 0.1
    gradient_clip: Positive = 1.0
    gradient_checkpointing: bool = False
    compile: bool = False
    checkpoint_steps: Count = 50


class Losses(Schedule, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A schedule with what the student is trained to minimize.

    learning_rate: peak learning rate
    loss: divergence from the teacher on logits
    temperature: divides the logits of teacher and student in the loss
    cross_entropy: share of the loss that is cross-entropy on the data
    layer_map: pairs [student layer, teacher layer] whose hidden states are compared; -1 is the
        embedding
    on_policy: share of the steps in which the student writes the second half of every row itself,
        and the teacher scores what it wrote; best with loss `reverse-kl` or `jsd`
    stop_after: tokens at which to end early, on the schedule of the full run
    """

    learning_rate: Positive = 5e-4
    loss: LossKind = "forward-kl"
    temperature: Positive = 1.0
    cross_entropy: Part = 0.0
    layer_map: LayerMap = ()
    on_policy: Part = 0.0
    stop_after: Count | None = None


class Distillation(Losses, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of a run; the defaults are for a few million tokens on one device.

    sequence_length: tokens per row. bf16: matrix products in bf16 (autocast), weights in fp32.
    within_documents: positions see their own document only, and are counted from its start.
    """

    sequence_length: Count = 512
    bf16: bool = True
    seed: Seed = 0
    within_documents: bool = False

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimizer step."""
        return self.batch_size * self.sequence_length

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole schedule."""
        return max(1, self.tokens // self.step_tokens)

    @property
    def last_step(self) -> int:
        """The last step of this run."""
        if self.stop_after is None:
            return self.steps
        return min(self.steps, max(1, self.stop_after // self.step_tokens))

    @property
    def trained_tokens(self) -> int:
        """Tokens of the steps of this run."""
        return self.last_step * self.step_tokens

    @property
    def objective(self) -> Objective:
        """The loss on logits."""
        return Objective(self.loss, self.temperature, self.cross_entropy)

    @property
    def lowest_learning_rate(self) -> float:
        """What the schedule falls to."""
        if self.final_learning_rate is None:
            return min(_FINAL_RATE, _FINAL_SHARE * self.learning_rate)
        return self.final_learning_rate

    @property
    def warmup_steps(self) -> int:
        """Steps in which the learning rate rises."""
        return math.ceil(self.warmup * self.steps)

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from zero."""
        warmup = self.warmup_steps
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        if self.schedule == "constant":
            return self.learning_rate
        final = self.lowest_learning_rate
        span = self.learning_rate - final
        if self.schedule == "wsd":
            left = (self.steps - step) / (self.decay * self.steps)
            return self.learning_rate if left >= 1 else final + span * left
        done = (step - warmup) / max(1, self.steps - warmup)
        return final + span * 0.5 * (1 + math.cos(math.pi * done))

    def why_not_after(self, before: "Distillation", steps: int) -> str | None:
        """Why a training cannot continue with these settings after `steps` steps with others.

        None if it can: all of these steps had the learning rates that they now have. Its result is
        then that of a training with these settings from the start.
        """
        if steps > self.last_step:
            return f"{steps} steps are done, and the training now has {self.last_step}"
        for step in range(steps):
            was, now = before.learning_rate_at(step), self.learning_rate_at(step)
            if math.isclose(was, now):
                continue
            reason = f"the learning rate of step {step + 1} was {was:.6g}, and is now {now:.6g}"
            if self.warmup_steps != (rising := before.warmup_steps) <= self.steps:
                same = msgspec.structs.replace(self, warmup=_share_of(rising, self.steps))
                if same.why_not_after(before, steps) is None:
                    reason += f"; warmup = {same.warmup} keeps the {rising} steps of the warmup"
            return reason
        return None

    def check(self, world_size: int = 1) -> None:
        """Raise BadInput for settings that contradict each other."""
        fewest, most = self.batch_size // world_size, -(-self.batch_size // world_size)
        # Sharded models need as many forward passes on every process.
        if fewest == 0 or -(-fewest // self.micro_batch) != -(-most // self.micro_batch):
            raise BadInput(
                f"batch_size {self.batch_size} cannot be divided over {world_size} processes in "
                f"micro-batches of {self.micro_batch}: some have {fewest} rows, others {most}; use "
                f"a batch_size that is a multiple of {world_size}, or micro_batch = {most}"
            )
        if not 0 <= self.cross_entropy <= 1:
            raise BadInput(
                f"cross_entropy {self.cross_entropy:g}: expected a share between 0 (teacher only) "
                "and 1 (no teacher)"
            )
        if self.on_policy and (self.cross_entropy or self.compile):
            other = "cross_entropy" if self.cross_entropy else "compile"
            why = "has no labels" if self.cross_entropy else "runs layers one token at a time"
            raise BadInput(
                f"on_policy {self.on_policy:g} and {other} cannot be combined: what the student "
                f"writes itself {why}; remove one of them"
            )
        if self.on_policy and self.within_documents:
            raise BadInput(
                "on_policy and within_documents cannot be combined: what the student writes "
                "continues the row; remove one of them"
            )
        if self.schedule != "constant" and self.lowest_learning_rate > self.learning_rate:
            raise BadInput(
                f"final_learning_rate {self.lowest_learning_rate:g} is above the peak, "
                f"learning_rate {self.learning_rate:g}: the rate would rise to the end; lower it, "
                "or leave it out"
            )
        if self.temperature <= 0:
            raise BadInput(f"temperature {self.temperature:g}: expected a number above 0")


def _share_of(count: int, steps: int) -> float:
    """The shortest `warmup` that gives this many of the steps."""
    exact = max(0.0, (count - 0.5) / steps)
    rounded = (float(f"{exact:.{digits}g}") for digits in range(1, 17))
    return next((share for share in rounded if math.ceil(share * steps) == count), exact)
