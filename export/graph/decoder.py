"""The decoder, written once, as functions over a dialect.

A dialect supplies the few ops in which engines differ. The residual stream is carried as a pair
`(stream, delta)` whose sum is due: most engines fuse that sum with the norm that follows it.
"""

import math
from typing import NamedTuple

import onnx_ir as ir

from edgelm.export.graph.dialects.dialect import Dialect
from edgelm.export.graph.dialects.ort import OrtDialect
from edgelm.export.graph.drafts.assistant import centroid_logits
from edgelm.export.graph.drafts.hidden_states import HiddenStates
from edgelm.export.graph.residual.altup import Streams
from edgelm.export.graph.residual.per_layer_inputs import join_inputs, layer_part
from edgelm.export.quantize.weights import Weights
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.groups import (
    ASSISTANT_INPUT,
    ASSISTANT_OUTPUT,
    FUSION,
    HEAD,
    PER_LAYER_MODEL,
    mixer_output,
)
from edgelm.spec.layers.experts import MixtureOfExperts
from edgelm.spec.layers.mixers import GatedDelta, Mamba2, NoMixer, ShortConv
from edgelm.spec.tensor_shapes import FUSION_NORMS

Value = ir.Value


class _Residual(NamedTuple):
    stream: Value
    delta: Value | None


class _Decoder(NamedTuple):
    dialect: Dialect
    spec: DecoderSpec
    weights: Weights
    per_layer: Value | None = None
    all_rows: bool = False

    def select(self, x: Value) -> Value:
        """The rows that the last layer computes: those whose logits are requested, or all."""
        return x if self.all_rows else self.dialect.select_positions(x)

    def linear(self, x: Value, group: str) -> Value:
        inputs = self.weights.inputs(group)
        if inputs is not None:
            x = self.dialect.prepare_inputs(x, group, inputs)
        return self.dialect.linear(
            x, group, lambda: self.weights.matrix(group), self.weights.bias(group)
        )

    def norm(self, x: Value, name: str) -> Value:
        return self.dialect.norm(x, name, self.weights.norm(name), self.weights.norm_bias(name))

    def sum_and_norm(self, residual: _Residual, name: str) -> tuple[Value, Value]:
        """`(norm(stream), stream)` with the delta added."""
        if residual.delta is None:
            return self.norm(residual.stream, name), residual.stream
        weight, bias = self.weights.norm(name), self.weights.norm_bias(name)
        return self.dialect.add_norm(residual.stream, residual.delta, name, weight, bias)

    def sum(self, residual: _Residual) -> Value:
        if residual.delta is None:
            return residual.stream
        return self.dialect.add(residual.stream, residual.delta)


def build_decoder(
    dialect: Dialect, weights: Weights, hidden_states: HiddenStates | None = None
) -> None:
    """Write the whole decoder through a dialect.

    `hidden_states` are given for a draft head or assistant, and for a decoder that has one: of each
    token.
    """
    spec = weights.checkpoint.spec
    if hidden_states is not None and spec.assistant is not None:
        build_assistant(_Decoder(dialect, spec, weights), hidden_states)
        return
    if hidden_states is not None and spec.draft_head:
        build_head(_Decoder(dialect, spec, weights), hidden_states)
        return
    decoder = _Decoder(dialect, spec, weights, all_rows=hidden_states is not None)
    hidden = dialect.embed()
    if spec.embedding_multiplier != 1.0:
        hidden = dialect.scale(hidden, spec.embedding_multiplier)
    if hidden_states is not None:
        hidden = hidden_states.behind_embedding(hidden)
    if spec.per_layer_inputs is not None:
        projected = decoder.linear(hidden, PER_LAYER_MODEL)
        decoder = decoder._replace(per_layer=join_inputs(dialect, weights, projected))
    layers = single_stream if spec.altup is None else several_streams
    normed, _ = decoder.sum_and_norm(layers(decoder, hidden), "norm")
    if hidden_states is not None:
        hidden_states.give(normed)
        normed = hidden_states.behind_layers(dialect.select_positions(normed))
    dialect.finish(decoder.linear(normed, HEAD) if spec.has_head else normed)


def build_head(decoder: _Decoder, hidden_states: HiddenStates) -> None:
    """Write a draft head: one layer, of rows of the embedding and hidden states."""
    embedded, given = hidden_states.read()
    token, hidden = (
        decoder.norm(one, name) for one, name in zip((embedded, given), FUSION_NORMS, strict=True)
    )
    fused = decoder.linear(hidden_states.concatenate(token, hidden), FUSION)
    normed, _ = decoder.sum_and_norm(single_stream(decoder, fused), "norm")
    hidden_states.give(normed)


def build_assistant(decoder: _Decoder, hidden_states: HiddenStates) -> None:
    """Write an assistant, of a row of the embedding, a hidden state and its model's cache."""
    dialect, own = decoder.dialect, decoder.spec.assistant
    given = hidden_states.concatenate(*hidden_states.read())
    hidden = single_stream(decoder, decoder.linear(given, ASSISTANT_INPUT))
    normed, _ = decoder.sum_and_norm(hidden, "norm")
    hidden_states.give(decoder.linear(normed, ASSISTANT_OUTPUT))
    if own is not None and own.centroids:
        assert isinstance(dialect, OrtDialect), "assistants are for ONNX Runtime"
        dialect.finish(centroid_logits(dialect, decoder.weights, normed))
    else:
        dialect.finish(decoder.linear(normed, HEAD))


def single_stream(decoder: _Decoder, hidden: Value) -> _Residual:
    """All layers, of the embedding; what the last norm has as its input."""
    residual = _Residual(hidden, None)
    for index in range(decoder.spec.num_hidden_layers):
        decoder.dialect.start_part()
        residual = block(decoder, index, residual)
        residual = after_block(decoder, index, residual)
    decoder.dialect.start_part()
    return residual


def several_streams(decoder: _Decoder, hidden: Value) -> _Residual:
    """The same, of a decoder whose layers predict and correct streams (AltUp)."""
    altup, dialect = decoder.spec.altup, decoder.dialect
    assert altup is not None
    writer = Streams(dialect, decoder.weights, altup)
    [entry] = altup.entry
    streams = writer.enter(hidden, decoder.linear(hidden, entry))
    for index in range(decoder.spec.num_hidden_layers):
        dialect.start_part()
        predicted = writer.predict(streams, index)
        active = writer.stream(predicted, altup.active)
        computed = decoder.sum(block(decoder, index, _Residual(active, None)))
        if index == decoder.spec.num_hidden_layers - 1:
            predicted = decoder.select(predicted)
        streams = writer.correct(predicted, computed, index)
        if decoder.per_layer is not None:
            delta = per_layer_delta(decoder, index, writer.output(streams, index))
            streams = writer.add_to_others(streams, delta)
    dialect.start_part()
    others = [
        decoder.linear(writer.stream(streams, number), group)
        for number, group in enumerate(altup.exit, start=1)
    ]
    return _Residual(writer.exit(writer.stream(streams, 0), others), None)


def block(decoder: _Decoder, index: int, residual: _Residual) -> _Residual:
    """One layer. The last one computes its MLP only for the rows whose logits are requested."""
    spec = decoder.spec
    last = index == spec.num_hidden_layers - 1
    prefix = f"layers.{index}"
    if isinstance(spec.layers[index].mixer, NoMixer):
        if last:
            residual = _Residual(decoder.select(decoder.sum(residual)), None)
        return feed_forward(decoder, index, residual)
    if spec.norms == "post":
        normed = stream = decoder.sum(residual)
    else:
        normed, stream = decoder.sum_and_norm(residual, f"{prefix}.input_layernorm")
    mixed = mixer(decoder, index, normed)
    beside = None if spec.layers[index].beside is None else mamba2(decoder, index, normed)
    if last:
        stream = decoder.select(stream)
        mixed = decoder.select(mixed)
    delta = decoder.linear(mixed, f"{prefix}.{mixer_output(spec.layers[index])}")
    if beside is not None:
        if last:
            beside = decoder.select(beside)
        delta = decoder.dialect.add(delta, decoder.linear(beside, f"{prefix}.mamba.out"))
    if spec.parallel_mlp and spec.mlp_size(spec.layers[index]):
        if spec.parallel_norm:
            inputs = decoder.norm(stream, f"{prefix}.post_attention_layernorm")
        else:
            inputs = decoder.select(normed) if last else normed
        return _Residual(stream, decoder.dialect.add(delta, mlp(decoder, index, inputs)))
    if spec.norms != "pre":
        delta = decoder.norm(delta, f"{prefix}.post_attention_layernorm")
    if spec.laurel_rank:
        inputs = decoder.select(normed) if last else normed
        total = decoder.dialect.add(stream, delta)
        total = decoder.dialect.add(total, laurel(decoder, index, inputs))
        return feed_forward(
            decoder, index, _Residual(decoder.dialect.scale(total, math.sqrt(0.5)), None)
        )
    return feed_forward(decoder, index, _Residual(stream, delta))


def after_block(decoder: _Decoder, index: int, residual: _Residual) -> _Residual:
    """What Gemma 4's layers end with: the token's own channels, and a factor."""
    spec, dialect = decoder.spec, decoder.dialect
    if decoder.per_layer is not None:
        stream = decoder.sum(residual)
        residual = _Residual(stream, per_layer_delta(decoder, index, stream))
    if spec.layer_scalars:
        factor = float(decoder.weights.tensor(f"model.layers.{index}.layer_scalar"))
        residual = _Residual(dialect.scale(decoder.sum(residual), factor), None)
    return residual


def per_layer_delta(decoder: _Decoder, index: int, x: Value) -> Value:
    """What the token's own channels add to a layer's output, of a stream."""
    spec, dialect = decoder.spec, decoder.dialect
    assert decoder.per_layer is not None
    channels = layer_part(dialect, spec, decoder.per_layer, index)
    if index == spec.num_hidden_layers - 1:
        channels = decoder.select(channels)
    gate = dialect.activate(decoder.linear(x, f"layers.{index}.per_layer.gate"), None)
    gated = dialect.graph.op("Mul", gate, channels)
    delta = decoder.linear(gated, f"layers.{index}.per_layer.projection")
    return decoder.norm(delta, f"layers.{index}.post_per_layer_input_norm")


def laurel(decoder: _Decoder, index: int, x: Value) -> Value:
    """What is beside attention: its inputs, plus the norm of a product of low rank with them."""
    product = decoder.linear(x, f"layers.{index}.laurel.left")
    product = decoder.linear(product, f"layers.{index}.laurel.right")
    normed = decoder.norm(product, f"layers.{index}.laurel.post_laurel_norm")
    return decoder.dialect.add(x, normed)


def feed_forward(decoder: _Decoder, index: int, residual: _Residual) -> _Residual:
    """The second half of a layer, if it has one."""
    spec, prefix = decoder.spec, f"layers.{index}"
    if not spec.mlp_size(spec.layers[index]):
        return residual
    if spec.norms == "post":
        stream = decoder.sum(residual)
        delta = mlp(decoder, index, stream)
    else:
        before = "post_attention" if spec.norms == "pre" else "pre_feedforward"
        if spec.single_sublayers or spec.shares_norm:
            before = "input"
        normed, stream = decoder.sum_and_norm(residual, f"{prefix}.{before}_layernorm")
        delta = mlp(decoder, index, normed)
    if spec.norms != "pre":
        delta = decoder.norm(delta, f"{prefix}.post_feedforward_layernorm")
    return _Residual(stream, delta)


def mixer(decoder: _Decoder, index: int, x: Value) -> Value:
    """What mixes tokens, before its output projection."""
    match decoder.spec.layers[index].mixer:
        case ShortConv():
            gates = decoder.linear(x, f"layers.{index}.conv.in")
            return decoder.dialect.short_conv(gates, index, *decoder.weights.conv(index))
        case GatedDelta() as delta:
            inputs = decoder.linear(x, f"layers.{index}.delta.in")
            weights = decoder.weights.delta(index)
            return decoder.dialect.gated_delta(inputs, index, delta, weights)
        case Mamba2():
            return mamba2(decoder, index, x)
    return attention(decoder, index, x)


def mamba2(decoder: _Decoder, index: int, x: Value) -> Value:
    """A state space mixer in place of attention or parallel to it, before its output projection."""
    mixer = decoder.spec.layers[index].recurrent
    assert isinstance(mixer, Mamba2)
    inputs = decoder.linear(x, f"layers.{index}.mamba.in")
    return decoder.dialect.mamba2(inputs, index, mixer, decoder.weights.mamba(index))


def attention(decoder: _Decoder, index: int, x: Value) -> Value:
    """Heads side by side, before the output projection."""
    prefix = f"layers.{index}"
    qkv = decoder.linear(x, f"{prefix}.attention.qkv")
    norms = None
    layer = decoder.spec.layers[index]
    shared = layer.shares_kv_of is not None
    if decoder.spec.qk_norm != "none":
        query = decoder.weights.norm(f"{prefix}.self_attn.q_norm")
        key = query if shared else decoder.weights.norm(f"{prefix}.self_attn.k_norm")
        norms = query, key
    if not decoder.spec.attention_gate:
        return decoder.dialect.attention(qkv, index, layer, norms)
    qkv, gate = decoder.dialect.split_gate(qkv, layer)
    return decoder.dialect.scale_by_gate(decoder.dialect.attention(qkv, index, layer, norms), gate)


def mlp(decoder: _Decoder, index: int, x: Value) -> Value:
    """The feed-forward network, with a gate or without, or a mixture of experts."""
    spec = decoder.spec
    if (mixture := spec.layers[index].mlp) is not None:
        return experts(decoder, index, mixture, x)
    if not spec.gated_mlp:
        up = decoder.linear(x, f"layers.{index}.mlp.up")
        xielu = decoder.weights.xielu(index) if spec.hidden_act == "xielu" else None
        return decoder.linear(decoder.dialect.activate(up, xielu), f"layers.{index}.mlp.down")
    layer = spec.layers[index]
    size, sparsity = spec.mlp_size(layer), layer.activation_sparsity
    return gated_mlp(decoder, f"layers.{index}.mlp", x, size, sparsity)


def gated_mlp(decoder: _Decoder, prefix: str, x: Value, size: int, sparsity: float = 0.0) -> Value:
    """`down(activation(gate) * up)`."""
    gate_up = decoder.linear(x, f"{prefix}.gate_up")
    gated = decoder.dialect.gated(gate_up, size, sparsity)
    return decoder.linear(gated, f"{prefix}.down")


def experts(decoder: _Decoder, index: int, mixture: MixtureOfExperts, x: Value) -> Value:
    """The chosen experts, and the one that always runs."""
    router = decoder.weights.router(index)
    routed = decoder.dialect.experts(x, index, mixture, router)
    if not mixture.shared:
        return routed
    shared = gated_mlp(decoder, f"layers.{index}.mlp.shared", x, mixture.shared)
    if router.shared_gate is not None:
        shared = decoder.dialect.gate_shared(shared, x, index, router.shared_gate)
    return decoder.dialect.add(routed, shared)
