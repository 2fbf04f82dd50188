"""The settings of a search for students whose layers differ."""

from typing import Literal

import msgspec

from edgelm.compress.ranges import Count, Part, Positive
from edgelm.errors import BadInput


class PuzzleSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Puzzle (arXiv 2411.19146): alternatives of every layer, and the best sum within the budget.

    Every alternative is distilled locally, from the input of the teacher's MLP or attention to its
    output. Then each is scored by the KL from the teacher when it alone is replaced.

    mlp_ratios: intermediate sizes of the alternatives, relative to the teacher's; 0 leaves the MLP
        out
    leave_out_attention: whether layers may lose their attention
    kv_heads: numbers of key heads of the alternatives of attention, each with its query heads
    costs: of alternatives: what the planner predicts for the target, or times measured on this
        machine's ONNX Runtime (for target cpu in fp32, int8 or int4), which are kept with the run;
        leave the machine idle meanwhile
    tokens: tokens of local distillation, in one pass for all alternatives
    batch_size: rows per step
    micro_batch: rows per forward pass
    learning_rate: peak learning rate; a cosine then lowers it to a tenth
    warmup: share of the steps in which the learning rate rises
    checkpoint_steps: optimizer steps between checkpoints
    score_rows: held-out rows on which the KL of each alternative is measured
    """

    mlp_ratios: tuple[Part, ...] = (0.75, 0.5, 0.25, 0.0)
    leave_out_attention: bool = True
    kv_heads: tuple[Count, ...] = ()
    costs: Literal["planner", "measured"] = "planner"
    tokens: Count = 200_000
    batch_size: Count = 8
    micro_batch: Count = 4
    learning_rate: Positive = 3e-4
    warmup: Part = 0.05
    checkpoint_steps: Count = 50
    score_rows: Count = 8

    def check(self) -> None:
        """Raise BadInput unless there is something to choose from."""
        if not self.mlp_ratios and not self.leave_out_attention and not self.kv_heads:
            raise BadInput(
                "[puzzle] has no alternatives: give mlp_ratios or kv_heads, or set "
                "leave_out_attention = true"
            )
        if len(set(self.kv_heads)) < len(self.kv_heads):
            raise BadInput(f"[puzzle] kv_heads {list(self.kv_heads)}: a number is given twice")
        if any(ratio == 1 for ratio in self.mlp_ratios):
            raise BadInput("[puzzle] mlp_ratios: 1 is the teacher's own size; give smaller ones")
