"""The context and the type of cache of a deployment, where the request leaves them open."""

from edgelm.devices.attention_kernels import check_cache, has_cache
from edgelm.devices.profile import Profile
from edgelm.devices.profile_tables import Engine
from edgelm.errors import BadInput, UnknownName
from edgelm.planning import PlanRequest
from edgelm.quantize.precision import EIGHT_BIT_KV, KV_BYTES, KvType
from edgelm.spec.decoder import DecoderSpec

_COMPILED_CONTEXT = 4096
_MIN_CONTEXT = 2  # one token of a prompt and one that is generated


def choose_context(
    spec: DecoderSpec, profile: Profile, asked: int | None, dialect: str = "ort"
) -> int:
    """The requested context, or the device's default, at most the model's.

    The default is shorter with TensorRT: up to twice what was seen is read for every token, and a
    full cache must fit together with the rest.

    Raises:
        BadInput: a context outside of the model's limits.
    """
    limit = spec.max_position_embeddings
    if limit < _MIN_CONTEXT:
        raise BadInput(
            f"max_position_embeddings is {limit}, expected at least {_MIN_CONTEXT}: nothing can be "
            "generated; correct config.json"
        )
    default = profile.default_context
    if dialect != "ort":
        default = min(default, _COMPILED_CONTEXT)
    if asked is None:
        # Beyond its original context a longrope model rotates every key differently.
        originals = [
            int(layer.rope.scaling.get("original_max_position_embeddings") or limit)
            for layer in spec.layers
            if layer.rope and layer.rope.scaling.get("rope_type") == "longrope"
        ]
        return min(limit, default, *originals)
    if asked < _MIN_CONTEXT or asked > limit:
        raise BadInput(
            f"context {asked} is not possible: expected {_MIN_CONTEXT} to {limit} "
            "(the model's max_position_embeddings)"
        )
    return asked


def choose_kv(spec: DecoderSpec, profile: Profile, engine: Engine, request: PlanRequest) -> KvType:
    """The requested cache type; by default the engine's first, on a CPU int8 (fp32 with fp32).

    An embedding model reads its cache while it processes a text, where fewer bits save no time.

    Raises:
        UnknownName: the engine has no such cache.
        BadInput: its kernels do not take this type for the decoder.
    """
    if request.kv is None:
        wanted = engine.kv[0]
        if engine.name == "onnxruntime" and spec.has_head:
            wanted = "fp32" if request.kind == "fp32" else "int8"
        # Gemma's residual stream exceeds the range of fp16, and a 16-bit cache has its type.
        if request.precision == "bf16" or (spec.exceeds_fp16 and wanted == "fp16"):
            wanted = "bf16"
        return wanted if wanted in engine.kv else engine.kv[0]
    if request.kv not in engine.kv:
        others = [one.name for one in profile.engines if request.kv in one.kv]
        raise UnknownName(
            f"{profile.name} has no {request.kv} cache with {engine.name}; it has "
            f"{', '.join(engine.kv)}"
            + (f" ({request.kv} with --engine {others[0]})" if others else "")
        )
    check_cache(spec, engine.name, request.kv)
    return request.kv


def listed_caches(
    spec: DecoderSpec, profile: Profile, engine: Engine, request: PlanRequest
) -> tuple[KvType, ...]:
    """The cache types to list for a request: those that differ in size, the default one first."""
    if request.kv is not None:
        return (request.kv,)
    # A quantized cache with unquantized weights is never a default.
    if request.precision == "fp32" and "fp32" in engine.kv:
        return ("fp32",)
    unquantized = request.precision in ("fp32", "fp16", "bf16")
    default = choose_kv(spec, profile, engine, request)
    by_size: dict[float, KvType] = {}
    for kv in (default, *engine.kv):
        if not (unquantized and kv in EIGHT_BIT_KV) and has_cache(spec, engine.name, kv):
            by_size.setdefault(KV_BYTES[kv], kv)
    return tuple(by_size.values())
