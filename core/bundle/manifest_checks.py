"""Consistency checks between the fields of a manifest, beyond the type and range of each.

Redundant fields must agree, so that one changed number ends in a message here and not in a buffer
of the wrong size.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator

from edgelm.bundle.file_names import check_engine_name, check_name
from edgelm.bundle.manifest import CacheContract, GraphContract, Manifest
from edgelm.bundle.records.adapters import adapter_file
from edgelm.bundle.records.gates import Figures
from edgelm.bundle.roles import check_roles, gives_hidden
from edgelm.bundle.segment_checks import check_segments
from edgelm.quantize.precision import Int4, Int8
from edgelm.spec.decoder import DecoderSpec

# Limits far above any decoder, and small enough to compute memory sizes.
_MAX_SIZES = {
    "num_hidden_layers": 1 << 12,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 53,
}
_MAX_GROUP = 1 << 16


def check_manifest(manifest: Manifest) -> None:
    """Raise ValueError for the first contradiction; the message names the fields."""
    _check_names(manifest)
    _check_spec(manifest.spec)
    _check_precision(manifest)
    _check_limits(manifest)
    check_roles(manifest.graph, manifest.spec)
    _check_hidden(manifest)
    _check_embedding(manifest)
    check_segments(manifest.graph)
    _check_cache(manifest.graph.cache, manifest)
    _check_unique(_tensor_names(manifest.graph), "two tensors of the graph are named")
    _check_engines(manifest)
    _check_adapters(manifest)
    for result in (manifest.gate, *(engine.gate for engine in manifest.engines)):
        if result is not None:
            _check_figures(result.figures)


def _check_names(manifest: Manifest) -> None:
    for name in (*manifest.graph.files, *manifest.files):
        check_name(name)
    for part in (part for engine in manifest.engines for part in engine.parts):
        check_engine_name(part.file, suffix=".engine")
        if part.runtime_cache:
            check_engine_name(part.runtime_cache, suffix=".cache")


def _check_spec(spec: DecoderSpec) -> None:
    for name, limit in _MAX_SIZES.items():
        value = getattr(spec, name)
        if not 1 <= value <= limit:
            raise ValueError(f"spec.{name} is {value}, expected 1 to {limit}")
    if len(spec.layers) != spec.num_hidden_layers:
        raise ValueError(
            f"spec.layers has {len(spec.layers)} entries, num_hidden_layers is "
            f"{spec.num_hidden_layers}"
        )
    for index, layer in enumerate(spec.layers):
        if not 0 <= (layer.intermediate_size or 0) <= spec.intermediate_size:
            raise ValueError(
                f"spec.layers[{index}].intermediate_size is {layer.intermediate_size}, expected 0 "
                f"to spec.intermediate_size, {spec.intermediate_size}"
            )
        queries, keys = layer.num_attention_heads, spec.heads(layer).keys
        if queries is not None and not (
            1 <= keys <= queries <= spec.num_attention_heads and queries % keys == 0
        ):
            raise ValueError(
                f"spec.layers[{index}].num_attention_heads is {queries}, expected a multiple of "
                f"the layer's {keys} key heads, up to spec.num_attention_heads, "
                f"{spec.num_attention_heads}"
            )
    if spec.num_attention_heads % spec.num_key_value_heads:
        raise ValueError(
            f"spec.num_attention_heads {spec.num_attention_heads} is not a multiple of "
            f"num_key_value_heads {spec.num_key_value_heads}"
        )
    if not spec.rms_norm_eps >= 0:
        raise ValueError(f"spec.rms_norm_eps is {spec.rms_norm_eps}, expected 0 or more")


def _check_precision(manifest: Manifest) -> None:
    for group, precision in manifest.precision.items():
        if isinstance(precision, Int4 | Int8) and not 0 <= precision.group_size <= _MAX_GROUP:
            raise ValueError(
                f"precision of {group!r}: group_size is {precision.group_size}, expected 0 to "
                f"{_MAX_GROUP}"
            )


def _check_limits(manifest: Manifest) -> None:
    limits, capacity = manifest.limits, manifest.graph.cache.capacity
    if limits.prefill_chunk > limits.context:
        raise ValueError(
            f"limits.prefill_chunk is {limits.prefill_chunk}, expected at most limits.context, "
            f"{limits.context}"
        )
    if capacity not in (None, limits.context):
        raise ValueError(
            f"graph.cache.capacity is {capacity}, expected limits.context, {limits.context}"
        )


def _check_hidden(manifest: Manifest) -> None:
    """A draft head and its model, which gives it hidden states, run on one engine."""
    if manifest.engine.name == "onnxruntime":
        return
    spec = manifest.spec
    if spec.draft_head or spec.assistant is not None or gives_hidden(manifest.graph):
        raise ValueError(
            f"engine.name is {manifest.engine.name!r}, expected 'onnxruntime': the graph is that "
            "of a draft head or an assistant, or of a model that gives hidden states to one"
        )


def _check_embedding(manifest: Manifest) -> None:
    record, spec = manifest.embedding, manifest.spec
    if (record is None) is not spec.has_head:
        raise ValueError(
            f"spec.has_head is {spec.has_head}, but the field embedding is "
            f"{'missing' if record is None else 'given'}"
        )
    if record is None:
        return
    if record.dimensions != spec.hidden_size:
        raise ValueError(
            f"embedding.dimensions is {record.dimensions}, expected spec.hidden_size, "
            f"{spec.hidden_size}"
        )
    for number, one in enumerate(record.sample):
        width, known = len(one.vector), max(one.tokens, default=-1) < spec.vocab_size
        if width != spec.hidden_size or not one.tokens or not known:
            raise ValueError(
                f"embedding.sample[{number}] has {len(one.tokens)} tokens and {width} numbers, "
                f"expected tokens below {spec.vocab_size} and {spec.hidden_size} numbers"
            )
    default, prompts = record.settings.default_prompt, record.settings.prompts
    if default is not None and default not in prompts:
        raise ValueError(f"embedding.settings.default_prompt {default!r} is not in prompts")


def _check_cache(cache: CacheContract, manifest: Manifest) -> None:
    spec, graph = manifest.spec, manifest.graph
    if cache.capacity is None and graph.dialect != "ort" and "cache_positions" not in graph.inputs:
        raise ValueError(
            "graph.cache.capacity is null and graph.inputs has no cache_positions; expected one"
        )
    pairs = {
        "graph.cache.layers": (
            len(cache.layers),
            "the layers of spec with keys and values",
            len(spec.cache_layers),
        ),
        "graph.cache.states": (
            [(one.layer, one.kind, one.shape) for one in cache.states],
            "the other layers of spec",
            [tuple(one) for one in spec.states],
        ),
        "graph.cache.num_key_value_heads": (
            cache.num_key_value_heads,
            "spec.num_key_value_heads",
            spec.num_key_value_heads,
        ),
        "graph.cache.head_dim": (cache.head_dim, "spec.head_dim", spec.head_dim),
        "graph.cache.dtype": (cache.dtype, "kv", manifest.kv),
    }
    for name, (value, other, expected) in pairs.items():
        if value != expected:
            raise ValueError(f"{name} is {value}, expected {expected}, the value of {other}")
    for layer, index in zip(cache.layers, spec.cache_layers, strict=True):
        heads, expected = cache.heads(layer), spec.heads(spec.layers[index])[1:]
        if heads != expected:
            raise ValueError(
                f"graph.cache.layers: {layer.past_key!r} has {heads[0]} heads of {heads[1]} "
                f"channels, expected {expected[0]} of {expected[1]}, those of spec.layers[{index}]"
            )
    _check_rows(manifest)


def _check_rows(manifest: Manifest) -> None:
    cache, spec = manifest.graph.cache, manifest.spec
    if not cache.cuts_windows:
        return
    if manifest.graph.dialect != "ort" or manifest.engine.name != "onnxruntime":
        raise ValueError(
            "graph.cache.layers has rows, which only the ort dialect has, for the engine "
            f"onnxruntime; this is the {manifest.graph.dialect} dialect, for {manifest.engine.name}"
        )
    shared = {layer.shares_kv_of for layer in spec.layers}
    for layer, index in zip(cache.layers, spec.cache_layers, strict=True):
        window, name = spec.layers[index].window, repr(layer.past_key)
        if layer.rows is None:
            continue
        if window is None or index in shared:
            raise ValueError(
                f"graph.cache.layers: {name} has rows, but spec.layers[{index}] has no window, or "
                "other layers read its keys and values"
            )
        if layer.window != window:
            raise ValueError(
                f"graph.cache.layers: {name} has the window {layer.window}, expected {window}, "
                f"that of spec.layers[{index}]"
            )
        if not window <= layer.rows <= manifest.limits.context:
            raise ValueError(
                f"graph.cache.layers: {name} has {layer.rows} rows, expected the "
                f"window of spec.layers[{index}], {window}, to limits.context, "
                f"{manifest.limits.context}"
            )


def _check_engines(manifest: Manifest) -> None:
    parts = [part for engine in manifest.engines for part in engine.parts]
    names = [part.file for part in parts]
    names += [part.runtime_cache for part in parts if part.runtime_cache]
    _check_unique(names, "two engines have the file")


def _check_adapters(manifest: Manifest) -> None:
    graph, adapters = manifest.graph, manifest.adapters
    _check_unique([one.group for one in graph.low_rank], "graph.low_rank has two entries of")
    if (graph.low_rank or adapters) and (graph.dialect != "ort" or manifest.compiles):
        raise ValueError(
            f"it has adapters, but its graph is of the {graph.dialect} dialect for "
            f"{manifest.engine.name}; expected one for ONNX Runtime"
        )
    if adapters and not graph.low_rank:
        raise ValueError("it has adapters, but graph.low_rank, which takes their factors, is empty")
    # File systems may not tell names apart that differ in upper and lower case alone.
    _check_unique([one.name.lower() for one in adapters], "two adapters are named")
    for one in adapters:
        if one.file != adapter_file(one.name):
            raise ValueError(
                f"the file of the adapter {one.name!r} is {one.file!r}, expected "
                f"{adapter_file(one.name)!r}"
            )
        if one.file not in manifest.files:
            raise ValueError(f"files does not list {one.file!r}, which an adapter names")


def _check_figures(figures: Figures) -> None:
    # If the source's own perplexity exceeds a float, nothing can be compared.
    values = (figures.kl, figures.top1, figures.perplexity_ratio, figures.perplexity)
    if not all(math.isfinite(value) and value >= 0 for value in values) or figures.top1 > 1:
        raise ValueError(
            f"the gate's figures are not numbers that can be measured: KL {figures.kl}, top-1 "
            f"{figures.top1}, perplexity {figures.perplexity} (ratio {figures.perplexity_ratio}); "
            "the model's weights or logits hold NaN or infinity"
        )
    if figures.tokens < 1:
        raise ValueError(f"the gate measured {figures.tokens} tokens, expected at least 1")


def _check_unique(names: Iterable[str], what: str) -> None:
    [(name, count)] = Counter(names).most_common(1) or [("", 0)]
    if count > 1:
        raise ValueError(f"{what} {name!r}, expected different ones")


def _tensor_names(graph: GraphContract) -> Iterator[str]:
    for tensor in (*graph.inputs.values(), *graph.outputs.values(), *graph.links):
        yield tensor.name
    for layer in graph.cache.layers:
        yield from (layer.past_key, layer.past_value, layer.present_key, layer.present_value)
    for state in graph.cache.states:
        yield from (state.past, state.present)
    for one in graph.low_rank:
        yield from (one.down, one.up)
