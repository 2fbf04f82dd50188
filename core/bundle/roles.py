"""The roles of a graph's inputs and outputs by dialect, with their types and shapes."""

from collections.abc import Mapping
from typing import NamedTuple

from edgelm.bundle.manifest import GraphContract, TensorContract
from edgelm.spec.decoder import DecoderSpec


class Role(NamedTuple):
    """Type and shape of a role; named dimensions are strings."""

    dtype: str
    shape: tuple[int | str, ...]


ROLES = {
    "tokens": Role("int64", (1, "T")),
    "positions": Role("int64", (1, "T")),
    "past_length": Role("int64", (1,)),
    "last_position": Role("int32", (1,)),
    "total_length": Role("int32", ()),
    "logits_positions": Role("int64", ("P",)),
    "cache_positions": Role("int64", ("capacity",)),
}
HIDDEN = "hidden"
# The same of a graph that takes several sequences per run.
_BATCHED = {
    "tokens": Role("int64", ("B", "T")),
    "positions": Role("int64", ("B", "T")),
    "past_length": Role("int64", ("B",)),
    "last_position": Role("int32", ("B",)),
}
_BATCHING = frozenset({"ort", "standard"})  # dialects with such graphs
_PLAIN = frozenset({"tokens", "positions", "past_length", "logits_positions"})
_FUSED = frozenset({"tokens", "past_length", "last_position", "total_length", "logits_positions"})
DIALECTS = {"ort": _FUSED, "standard": _PLAIN, "decomposed": _PLAIN}
# Bundles before the one in which the cache could grow have none.
_OPTIONAL = {
    "standard": frozenset({"cache_positions"}),
    "decomposed": frozenset({"cache_positions"}),
}


def output_role(spec: DecoderSpec) -> tuple[str, int]:
    """The role of a graph's output, and how many numbers it has for each token.

    A decoder with a head gives `logits`, an embedding model `hidden`: its states behind the final
    norm. Versions of edgelm that know no embedding models find no logits, and say so.
    """
    return ("logits", spec.vocab_size) if spec.has_head else (HIDDEN, spec.hidden_size)


def gives_hidden(graph: GraphContract) -> bool:
    """Whether a graph gives hidden states beside logits: a draft head, or a model for one."""
    return {"logits", HIDDEN} <= graph.outputs.keys()


def check_roles(graph: GraphContract, spec: DecoderSpec) -> None:
    """Raise ValueError unless a graph has exactly the roles of its dialect, of the right shapes."""
    if graph.dialect not in DIALECTS:
        raise ValueError(
            f"graph.dialect is {graph.dialect!r}; known: {', '.join(DIALECTS)}; upgrade edgelm"
        )
    optional = _OPTIONAL.get(graph.dialect, frozenset()) & graph.inputs.keys()
    batched = graph.takes_batches and graph.dialect in _BATCHING
    roles = ROLES | (_BATCHED if batched else {})
    inputs = {role: roles[role] for role in DIALECTS[graph.dialect] | optional}
    name, width = output_role(spec)
    rows = roles["tokens"].shape[0]
    outputs = {name: Role("float32", (rows, "P", width))}
    if spec.draft_head:
        inputs[HIDDEN] = Role("float32", (1, "T", spec.hidden_size))
        outputs[HIDDEN] = Role("float32", (1, "P", spec.hidden_size))
    elif gives_hidden(graph):
        outputs[HIDDEN] = Role("float32", (1, "T", spec.hidden_size))
    _check(graph.inputs, inputs, f"graph.inputs of the {graph.dialect} dialect")
    _check(graph.outputs, outputs, "graph.outputs")
    if HIDDEN in outputs and spec.has_head and (rows != 1 or graph.dialect != "ort"):
        raise ValueError(
            "graph.outputs has logits and hidden; expected the ort dialect, without a batch axis"
        )
    if rows == "B" and graph.cache.states:
        raise ValueError("graph.inputs has a batch axis; expected no graph.cache.states")
    if rows == "B" and graph.dialect == "ort" and graph.cache.capacity is not None:
        raise ValueError("graph.inputs has a batch axis; expected a cache that grows")


def _check(given: Mapping[str, TensorContract], expected: Mapping[str, Role], where: str) -> None:
    if given.keys() != expected.keys():
        raise ValueError(
            f"{where} has the roles {', '.join(sorted(given))}, expected "
            f"{', '.join(sorted(expected))}"
        )
    for role, tensor in given.items():
        wanted = expected[role]
        if (tensor.dtype, tensor.shape) != wanted:
            raise ValueError(
                f"{where}: {role} is {tensor.dtype} {list(tensor.shape)}, expected {wanted.dtype} "
                f"{list(wanted.shape)}"
            )
