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
# What passes between a model and its draft head; two of the names are those of tensors, too.
EMBEDDED, HIDDEN, SELECTED = "embedded", "hidden", "selected"
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
    """Whether a graph gives hidden states beside logits, for a draft head."""
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
    hidden = Role("float32", (1, "T", spec.hidden_size))
    if spec.draft_head:
        inputs |= {EMBEDDED: hidden, HIDDEN: hidden}
        outputs = {HIDDEN: Role("float32", (1, "P", spec.hidden_size))}
        if graph.segments:
            raise ValueError("spec.draft_head is true; expected no graph.segments")
    elif spec.assistant is not None:
        _check_assistant(graph, spec, inputs, outputs)
    elif gives_hidden(graph):
        outputs[HIDDEN] = hidden
        _check_cut(graph)
    _check(graph.inputs, inputs, f"graph.inputs of the {graph.dialect} dialect")
    _check(graph.outputs, outputs, "graph.outputs")
    if hidden in outputs.values() and (rows != 1 or graph.dialect != "ort"):
        raise ValueError(
            "graph.outputs has logits and hidden; expected the ort dialect, without a batch axis"
        )
    if rows == "B" and graph.cache.states:
        raise ValueError("graph.inputs has a batch axis; expected no graph.cache.states")
    if rows == "B" and graph.dialect == "ort" and graph.cache.capacity is not None:
        raise ValueError("graph.inputs has a batch axis; expected a cache that grows")


def _check_assistant(
    graph: GraphContract, spec: DecoderSpec, inputs: dict[str, Role], outputs: dict[str, Role]
) -> None:
    """Add the roles of an assistant's graph; raise ValueError where it is cut."""
    assert spec.assistant is not None
    width = spec.assistant.model_size
    inputs |= dict.fromkeys((EMBEDDED, HIDDEN), Role("float32", (1, "T", width)))
    outputs[HIDDEN] = Role("float32", (1, "P", width))
    dtype = {"fp32": "float32"}.get(graph.cache.dtype, graph.cache.dtype)
    for layer in spec.layers:
        heads = spec.heads(layer)
        for kind in ("key", "value"):
            role = Role(dtype, (1, heads.keys, "capacity", heads.dim))
            inputs[f"past.{layer.shares_kv_of}.{kind}"] = role
    if graph.segments or any(layer.shares_kv_of is None for layer in spec.layers):
        raise ValueError(
            "spec.assistant is given; expected layers that read a layer of the model "
            "(shares_kv_of), and no graph.segments"
        )


def _check_cut(graph: GraphContract) -> None:
    """Raise ValueError unless the embedding and the output matrix are segments of their own."""
    ends = [(one.inputs[-1:], one.outputs[-1:]) for one in graph.segments]
    cut = [((EMBEDDED,), (SELECTED,)), ((SELECTED,), (graph.outputs["logits"].name,))]
    if len(ends) != 3 or ends[0][1] != (EMBEDDED,) or ends[1:] != cut:
        raise ValueError(
            f"graph.outputs has logits and hidden; expected three graph.segments, between which "
            f"{EMBEDDED} and {SELECTED} pass"
        )


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
