"""A loaded bundle taken apart into models of one sequence each, over the same weights."""

from copy import copy

from edgelm.runtime.model import LanguageModel


def split(model: LanguageModel) -> list[LanguageModel]:
    """A model for each sequence that a model has.

    A part continues only what it computed itself, so that with greedy decoding an answer does not
    depend on what other threads generate. Tokens of all parts still run together. Close the whole
    model, not the parts, and do not use the parts at the same time.
    """
    parts = []
    for sequences in model._sequences.split():
        part = copy(model)
        part._sequences = sequences
        parts.append(part)
    return parts
