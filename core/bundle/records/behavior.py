"""How a model behaves when its answers are sampled, compared with its source's.

A mean KL hides what is rare and matters most: an answer that never ends, or repeats itself.
Both models answer the same prompts with the same random numbers. What one does and the other does
not is compared by the exact sign test (McNemar's): if neither were worse, each prompt on which
they differ would fall to either side with probability 1/2.
"""

import math
from typing import Annotated, Literal

import msgspec

Trait = Literal["ended", "no loop", "in script", "tags closed"]
TRAITS: tuple[Trait, ...] = ("ended", "no loop", "in script", "tags closed")
# Over four traits, an export that changes nothing fails once in 250.
MAX_CHANCE = 0.001
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class TraitShares(msgspec.Struct, frozen=True):
    """The share of answers with a trait, of the source and of the bundle.

    `lost` are prompts where the source's answer alone has it, `gained` where the bundle's alone
    has. `error` is the standard error of the difference of the shares, `chance` the probability
    of that many losses or more among the differing prompts if neither model is worse.
    """

    trait: Trait
    source: _Share
    bundle: _Share
    lost: _Count
    gained: _Count
    error: float
    chance: _Share

    @property
    def holds(self) -> bool:
        """Whether chance explains the losses."""
        return self.chance >= MAX_CHANCE

    def can_fail_after(self, more: int) -> bool:
        """Whether `more` prompts could still make it fail, or hold again."""
        return not self.holds or sign_test(self.lost + more, self.gained) < MAX_CHANCE


class Behavior(msgspec.Struct, frozen=True):
    """Sampled answers to `prompts` prompts of at most `max_tokens` tokens each."""

    prompts: _Count
    max_tokens: _Count
    temperature: float
    seed: int
    traits: tuple[TraitShares, ...]

    @property
    def passed(self) -> bool:
        """Whether no trait is lost beyond chance."""
        return all(trait.holds for trait in self.traits)

    def is_decided(self, more: int) -> bool:
        """Whether answers to `more` prompts could not change that it passes."""
        return more == 0 or not any(trait.can_fail_after(more) for trait in self.traits)

    @property
    def failure(self) -> str:
        """The traits that were lost, for a message."""
        lost = [
            f"{one.trait}: {one.source:.0%} of the source's answers, {one.bundle:.0%} of the "
            f"bundle's (chance {one.chance:.1g}, at least {MAX_CHANCE} expected)"
            for one in self.traits
            if not one.holds
        ]
        return "; ".join(lost)


def compare_trait(trait: Trait, source: list[bool], bundle: list[bool]) -> TraitShares:
    """Compare answers to the same prompts, in the same order."""
    n = len(source)
    pairs = list(zip(source, bundle, strict=True))
    lost, gained = pairs.count((True, False)), pairs.count((False, True))
    # Of a mean of n values -1, 0 and 1.
    mean = (gained - lost) / n
    variance = max(0.0, (lost + gained) / n - mean**2)
    return TraitShares(
        trait=trait,
        source=sum(source) / n,
        bundle=sum(bundle) / n,
        lost=lost,
        gained=gained,
        error=math.sqrt(variance / n),
        chance=sign_test(lost, gained),
    )


def sign_test(losses: int, gains: int) -> float:
    """The probability of at least that many losses among all differences.

    >>> sign_test(3, 0)
    0.125
    """
    differences = losses + gains
    ways = sum(math.comb(differences, count) for count in range(losses, differences + 1))
    return min(1.0, math.ldexp(float(ways), -differences))
