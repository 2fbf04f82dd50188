"""The head of a checkpoint that drafts tokens (multi-token prediction), as a decoder of its own.

Behind a model's last layer, it has one more layer with attention, which predicts the token after
the next one. Its input at a position is `fc([norm(embedding of the next token), norm(hidden)])`,
where `hidden` is what the model's head reads there, behind the final norm; from the second drafted
token on it is what the head itself gave. Embedding and output matrix are the model's
(DeepSeek-V3, arXiv 2412.19437, section 2.2; as Qwen3.5 has it).
"""

import msgspec

from edgelm.errors import BadInput
from edgelm.quantize.precision import KvType
from edgelm.spec.decoder import DecoderSpec

HEAD_CACHE: KvType = "fp32"  # one layer, for which nothing is calibrated
_MIN_ROWS, _MAX_ROWS = 64, 2048
_MAX_BYTES = 8 << 20


def draft_head_spec(spec: DecoderSpec) -> DecoderSpec:
    """The draft head of a decoder: its only layer is like the decoder's last one with attention.

    Raises:
        BadInput: a decoder whose layers no head of this kind can follow.
    """
    mixed = spec.mixtures or spec.has_layer_heads or spec.has_own_sizes or spec.single_sublayers
    mixed = mixed or spec.per_layer_inputs is not None
    mixed = mixed or any(layer.beside is not None for layer in spec.layers)
    if mixed or not spec.has_head or not spec.attention_layers:
        raise BadInput(
            "a draft head is one more layer like those of its model, but this model has experts, "
            "layers of several sizes or none with attention; export it without the draft head"
        )
    layer = spec.layers[spec.attention_layers[-1]]
    return msgspec.structs.replace(spec, num_hidden_layers=1, layers=(layer,), draft_head=True)


def hidden_rows(hidden_size: int) -> int:
    """How many of the last hidden states, fp32, a model holds until its draft head reads them.

    A head that is read later begins behind the first tokens: what it drafts is then worse.
    """
    return max(_MIN_ROWS, min(_MAX_ROWS, _MAX_BYTES // (4 * hidden_size)))
