"""The graph of a draft head together with the embedding and the output matrix of its model."""

import msgspec

from edgelm.bundle import GraphContract
from edgelm.bundle.roles import EMBEDDED, HIDDEN


def head_graph(model: GraphContract, head: GraphContract) -> GraphContract:
    """The head in place of the middle one of its model's three segments.

    `selected` is both what the head gives and what the output matrix reads.
    """
    first, _, last = model.segments
    inputs = {role: one for role, one in head.inputs.items() if role != EMBEDDED}
    return msgspec.structs.replace(
        head,
        file=first.file,
        inputs=inputs,
        outputs={"logits": model.outputs["logits"], HIDDEN: head.outputs[HIDDEN]},
        segments=(first, *head.parts, last),
        links=tuple(one for one in model.links if one.name == EMBEDDED),
    )
