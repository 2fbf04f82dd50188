"""The budget of a student, and the settings of the search."""

import msgspec

from edgelm.compress.distillation.settings import Distillation
from edgelm.compress.ranges import Count, CountOrZero, Share
from edgelm.planning import PlanRequest

_ROUND_STEPS = 50


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the student may cost; None is no limit.

    parameters: outside the embeddings, as a share of the teacher's, or a number above one.
    request: for the planner: precision, context, prompt, memory, tokens per second.
    first_token_ms: after a prompt of `request.prompt` tokens.
    """

    parameters: float | None = None
    first_token_ms: float | None = None
    request: PlanRequest = PlanRequest()


class SearchSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How wide and how long to search.

    candidates: shapes that are pruned and scored without training, spread over all kinds
    finalists: how many of them are distilled, with [distill]'s losses, batches and peak learning
        rate
    kd_rounds: maximum rounds of distillation; rankings settle after about 300 steps (arXiv
        2407.14679, section 4)
    round_steps: optimizer steps per round; by default 50, or a twentieth of [distill]'s steps if
        that is fewer
    warmup_steps: steps in which the learning rate of a finalist rises; then it is constant
    settled_rounds: rounds before the search may end early
    patience: rounds without a change of the ranking after which it ends
    held_out_rows: rows that decide between candidates
    min_ratio: smallest value of any size, relative to the teacher's
    """

    candidates: Count = 24
    finalists: Count = 4
    kd_rounds: CountOrZero = 6
    round_steps: Count | None = None
    warmup_steps: CountOrZero = 10
    settled_rounds: CountOrZero = 4
    patience: Count = 2
    held_out_rows: Count = 16
    min_ratio: Share = 0.4

    def schedule(self, training: Distillation) -> Distillation:
        """The schedule of a finalist: a run's own would end within its warm-up."""
        steps = max(1, self.kd_rounds) * self.steps_per_round(training)
        return msgspec.structs.replace(
            training,
            tokens=steps * training.step_tokens,
            warmup=min(self.warmup_steps, steps) / steps,
            schedule="constant",
            stop_after=None,
            # They mean nothing here, and a change of them would repeat the search.
            decay=Distillation().decay,
            final_learning_rate=None,
        )

    def steps_per_round(self, training: Distillation) -> int:
        """Optimizer steps of a round, before a distillation with these settings."""
        return self.round_steps or min(_ROUND_STEPS, max(1, training.steps // 20))
