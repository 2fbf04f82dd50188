"""Settings of the two alignment methods, and the same as arguments of `transformers`."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from edgelm.errors import BadInput

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """Settings of both methods; use `Sft` or `Dpo`.

    learning_rate: peak value for AdamW, after a linear warmup and before a cosine decay to 0.
    epochs: passes over the data, unless `max_steps` sets the number of steps.
    batch_size: examples per forward pass on each device; a step takes `accumulation` of them.
    max_length: tokens per example; the rest is truncated.
    warmup: share of all steps.
    precision: of the matrix products; auto is bf16 on a GPU that supports it, else fp32. Weights
        and optimizer are fp32: updates this small vanish in bf16.
    gradient_checkpointing: recompute activations, for less memory and 20% more time.
    save_steps: steps between two checkpoints.
    """

    learning_rate: float = 2e-5
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 8
    accumulation: int = 1
    max_length: int = 1024
    warmup: float = 0.05
    weight_decay: float = 0.0
    precision: Precision = "auto"
    gradient_checkpointing: bool = False
    save_steps: int = 200
    seed: int = 0

    def check(self) -> None:
        """Raise BadInput for values out of range."""
        if not 0 < self.learning_rate < math.inf:
            raise BadInput(f"learning_rate is {self.learning_rate}, expected above 0")
        if not 0 < self.epochs < math.inf:
            raise BadInput(f"epochs is {self.epochs}, expected above 0")
        if not 0 <= self.warmup < 1:
            raise BadInput(f"warmup is {self.warmup}, expected a share from 0 to below 1")
        if not 0 <= self.weight_decay < math.inf:
            raise BadInput(f"weight_decay is {self.weight_decay}, expected 0 or more")
        for name in ("batch_size", "accumulation", "save_steps", "max_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"{name} is {value}, expected 1 or more")
        if self.max_length < 2:
            raise BadInput(f"max_length is {self.max_length}, expected 2 tokens or more")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise BadInput(f"precision is {self.precision!r}, expected auto, fp32 or bf16")

    def arguments(self) -> dict[str, Any]:
        """These settings as arguments of a `transformers` training."""
        return {
            "learning_rate": self.learning_rate,
            "num_train_epochs": self.epochs,
            "max_steps": self.max_steps or -1,
            "per_device_train_batch_size": self.batch_size,
            "gradient_accumulation_steps": self.accumulation,
            "max_length": self.max_length,
            "warmup_steps": self.warmup,  # below 1: a share
            "lr_scheduler_type": "cosine",
            "weight_decay": self.weight_decay,
            _checkpointing(): self.gradient_checkpointing,
            "save_steps": self.save_steps,
            "seed": self.seed,
            "data_seed": self.seed,
        }

    def record(self) -> dict[str, Any]:
        """All settings, compared when a run is resumed."""
        return {"method": type(self).__name__, **asdict(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sft(Alignment):
    """Supervised fine-tuning: maximize the likelihood of the answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dpo(Alignment):
    """Direct preference optimization (Rafailov et al. 2023): better answers over worse ones.

    The reference is the initial model; its likelihoods are computed once before the first step,
    so that no second model stays in memory.

    beta: strength of the KL penalty.
    """

    learning_rate: float = 1e-6
    beta: float = 0.1

    def check(self) -> None:
        # Not super(): with slots=True the decorator replaces the class that super() would refer to.
        Alignment.check(self)
        if not 0 < self.beta < math.inf:
            raise BadInput(f"beta is {self.beta}, expected above 0")

    def arguments(self) -> dict[str, Any]:
        return Alignment.arguments(self) | {"beta": self.beta, "precompute_ref_log_probs": True}


def _checkpointing() -> str:
    """The argument's name, which differs between supported versions of transformers."""
    from transformers import TrainingArguments

    names = {field.name for field in fields(TrainingArguments)}
    new, old = "activation_checkpointing", "gradient_checkpointing"
    return new if new in names else old
