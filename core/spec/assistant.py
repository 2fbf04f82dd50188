"""The assistant of a Gemma 4: a small decoder that drafts tokens from what its model has computed.

Its layers project queries only and attend to the keys and values of its model: of the model's last
layer with rows of its own and the same kind of attention. Its input is
`pre([embedding of the last token, hidden])`, both its model's, where `hidden` is the state behind
the final norm at the token before. From the second drafted token on, `post(output)` stands for
`hidden`; position, keys and values stay those of the last token that the model has run.
(transformers, models/gemma4_assistant and SinglePositionMultiTokenCandidateGenerator.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edgelm.errors import BadInput

if TYPE_CHECKING:
    from edgelm.spec.decoder import DecoderSpec

STATES = 64  # hidden states that a model keeps for its assistant: more than a checking run has


class Assistant(msgspec.Struct, frozen=True):
    """What a decoder that is an assistant has beside its layers.

    `model_size` is the hidden size of its model. With `centroids`, the vocabulary is divided into
    as many parts of equal size, and logits are computed for the tokens of the `active` parts whose
    centroids are nearest; all others get a smaller one. 0: logits of all tokens.
    """

    model_size: int
    centroids: int = 0
    active: int = 0


def with_sources(assistant: DecoderSpec, model: DecoderSpec) -> DecoderSpec:
    """The assistant whose layers name the layers of its model that they read.

    Raises:
        BadInput: an assistant of another model.
    """
    own = assistant.assistant
    assert own is not None
    sizes = {"hidden states of": (own.model_size, model.hidden_size)}
    sizes["a vocabulary of"] = (assistant.vocab_size, model.vocab_size)
    for what, (reads, has) in sizes.items():
        if reads != has:
            raise BadInput(
                f"the assistant is of another model: it expects {what} {reads}, the model has "
                f"{has}; pass the assistant of this model"
            )
    layers = []
    for index, layer in enumerate(assistant.layers):
        kind = "full attention" if layer.window is None else "a sliding window"
        found = [
            one
            for one in model.cache_layers
            if (model.layers[one].window is None) is (layer.window is None)
        ]
        if not found:
            raise BadInput(
                f"the assistant is of another model: its layer {index} has {kind}, and the model "
                "has no such layer; pass the assistant of this model"
            )
        source = found[-1]
        reads_heads = assistant.heads(layer)[1:]
        has_heads = model.heads(model.layers[source])[1:]
        if reads_heads != has_heads:
            raise BadInput(
                f"the assistant is of another model: its layer {index} reads keys of "
                f"{reads_heads[0]} heads of {reads_heads[1]} channels, and layer {source} of the "
                f"model, its last one with {kind}, has {has_heads[0]} of {has_heads[1]}; pass the "
                "assistant of this model"
            )
        layers.append(msgspec.structs.replace(layer, shares_kv_of=source))
    return msgspec.structs.replace(assistant, layers=tuple(layers))


def read_layers(assistant: DecoderSpec | None) -> tuple[int, ...]:
    """The layers of the model whose keys and values its assistant reads; none without one."""
    if assistant is None:
        return ()
    return tuple(
        sorted({one.shares_kv_of for one in assistant.layers if one.shares_kv_of is not None})
    )
