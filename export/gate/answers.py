"""Sampled answers of a bundle, with the random numbers of edgelm.export.gate.source_answers."""

from collections.abc import Sequence
from typing import Any

import msgspec

from edgelm.errors import BadInput
from edgelm.export.gate import prompts as asked
from edgelm.runtime.generation.options import Options
from edgelm.runtime.generation.sampler import Sampling
from edgelm.runtime.model import LanguageModel

SEED = 7


class SampledAnswer(msgspec.Struct, frozen=True):
    """New tokens, the end-of-turn token left out, and whether there was one."""

    tokens: tuple[int, ...]
    ended: bool


def sampling_of(values: dict[str, Any], vocab_size: int) -> Sampling:
    """The sampling of a generation config, at temperature 1 where it names none that is valid."""
    names = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
    given = {name: values[name] for name in names if values.get(name) is not None}
    if not given.get("temperature"):  # greedy: nothing would be sampled
        given["temperature"] = 1.0
    sampling = Sampling(**given)
    try:
        sampling.check(vocab_size)
    except BadInput:  # values of a config that does not sample are not checked at export
        return Sampling(temperature=1.0)
    return sampling


def bundle_answers(
    model: LanguageModel, prompts: Sequence[Sequence[int]], sampling: Sampling
) -> list[SampledAnswer]:
    """The answers of a bundle through the runtime's generation loop."""
    answers = []
    for number, prompt in enumerate(prompts):
        options = Options(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            typical_p=sampling.typical_p,
            repetition_penalty=sampling.repetition_penalty,
            seed=SEED + number,
            max_tokens=asked.MAX_TOKENS,
        )
        reply = model.generate(list(prompt), **options)
        ended = reply.stop_reason == "eos_token"
        answers.append(SampledAnswer(tuple(reply.tokens[: -1 if ended else None]), ended))
    return answers
