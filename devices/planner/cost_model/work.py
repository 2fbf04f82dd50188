"""The work of a decoder, independent of a device: bytes to read and operations."""

import msgspec

from edgelm.spec.decoder import DecoderSpec

_SIXTEEN_BIT = 2  # bytes of a cache element of the published engines


class Cache(msgspec.Struct, frozen=True):
    """Layers with the same kind of KV cache: bytes per token, summed over these layers."""

    bytes_per_token: float
    window: int | None = None

    def bytes(self, depth: float) -> float:
        """Bytes read for one new token after `depth` others."""
        return self.bytes_per_token * min(depth, self.window or depth)


class Work(msgspec.Struct, frozen=True):
    """One decoder in one precision.

    `linear_parameters` and `head_parameters` are multiplied with every token; `linear_bytes` and
    `head_bytes` are their sizes. For a mixture of experts these are the active ones, and
    `expert_bytes` counts all experts. `layers` are those that run, a half one for
    each half (edgelm.spec.decoder). `attention_width` is the query width summed over layers.
    """

    layers: float
    linear_parameters: float
    head_parameters: float
    linear_bytes: float
    head_bytes: float
    resident_bytes: float
    caches: tuple[Cache, ...]
    attention_width: float
    attention_layers: int
    active_experts: int = 0
    experts: int = 0
    expert_bytes: float = 0.0
    recurrent_layers: int = 0
    state_bytes: float = 0.0
    """What layers without attention read and write of their states for every token."""

    def cache_bytes(self, depth: float) -> float:
        """Bytes of all caches and states for one new token after `depth` others."""
        return self.state_bytes + sum(cache.bytes(depth) for cache in self.caches)

    def prompt_bytes(self, tokens: float) -> float:
        """Weights read for a prompt: more tokens touch more experts."""
        if not self.experts:
            return self.linear_bytes + self.head_bytes
        active = self.expert_bytes * self.active_experts / self.experts
        touched = 1.0 - float((1.0 - self.active_experts / self.experts) ** tokens)
        return self.linear_bytes - active + self.expert_bytes * touched + self.head_bytes

    def attention_pairs(self, tokens: float) -> float:
        """Query-key pairs that attention multiplies for a prompt, summed over widths."""
        if not self.caches:
            return 0.0
        total = sum(cache.bytes_per_token for cache in self.caches)
        pairs = 0.0
        for cache in self.caches:
            window = min(tokens, cache.window or tokens)
            seen = tokens * window - window * window / 2  # causal: a triangle, then a band
            pairs += seen * cache.bytes_per_token / total
        return pairs * self.attention_width


def work_of(
    spec: DecoderSpec,
    *,
    linear_bits: float,
    head_bits: float,
    kv_bytes: float = _SIXTEEN_BIT,
    windows: bool = True,
) -> Work:
    """The work of a decoder, from bits per weight and bytes per cache element.

    Without `windows`, layers with a sliding window read as much as the others.
    """
    attending = [layer for layer in spec.layers if layer.attends]
    # A layer that shares another's keys and values reads them as if they were its own.
    read: dict[int | None, float] = {}
    for layer in attending:
        window = layer.window if windows else None
        read[window] = read.get(window, 0.0) + 2 * spec.heads(layer).kv_size * kv_bytes
    caches = tuple(Cache(size, window) for window, size in read.items())
    head, table = spec.head_parameters, spec.embedding_parameters
    active, idle = spec.active_parameters, spec.linear_parameters - spec.active_parameters
    mixtures = spec.mixtures
    every_expert = sum(one.expert_parameters(spec.hidden_size) for one in mixtures)
    rows = spec.per_layer_embedding_parameters  # of which a token reads one, next to nothing
    copies = 1 if spec.tie_word_embeddings else 2
    return Work(
        layers=spec.executed_layers,
        linear_parameters=active,
        head_parameters=head,
        linear_bytes=active * linear_bits / 8,
        head_bytes=head * head_bits / 8,
        resident_bytes=((active + idle + rows) * linear_bits + copies * table * head_bits) / 8,
        caches=caches,
        attention_width=sum(spec.heads(layer).q_size for layer in attending),
        attention_layers=len(attending),
        active_experts=mixtures[0].top_k if mixtures else 0,
        experts=mixtures[0].experts if mixtures else 0,
        expert_bytes=every_expert * linear_bits / 8,
        state_bytes=2 * spec.state_bytes(4),
    )
