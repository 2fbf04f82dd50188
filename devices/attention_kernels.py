"""What ONNX Runtime's attention on CUDA does with caches: types that it lacks, and what is slow.

Read from its sources and from the messages of onnxruntime-gpu 1.31.1's CUDA provider
(docs/decisions/layer-heads-on-cuda.md).
"""

from collections.abc import Iterable

from edgelm.errors import BadInput
from edgelm.quantize.precision import EIGHT_BIT_KV, KvType
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.layers.heads import HeadSizes

_CUDA = "onnxruntime-cuda"
# The most channels of a head in flash attention; wider heads take the memory-efficient kernel.
_FLASH_HEAD = 256
# Where the query heads have more channels than this, the copy for each of them launches blocks by
# rows of the cache, of which CUDA has no more than this.
_MOST_UNBLOCKED, _MOST_ROWS = 4096, 65_535
# The kernel for decoding over an 8-bit cache (XQA).
_XQA_HEAD_DIMS = (64, 128, 256)
_XQA_QUERIES = (4, 8, 16, 32)  # query heads per key head


def has_cache(spec: DecoderSpec, engine: str, kv: KvType) -> bool:
    """Whether an engine's kernels take a type of cache for a decoder; see `check_cache`."""
    return _why_no_cache(spec, engine, kv) is None


def check_cache(spec: DecoderSpec, engine: str, kv: KvType) -> None:
    """Raise BadInput for a type of cache that the engine's kernels do not take for a decoder."""
    if (reason := _why_no_cache(spec, engine, kv)) is not None:
        raise BadInput(
            f"{engine} cannot run this {spec.family} with an {kv} cache: {reason}; leave out "
            f"--kv {kv}"
        )


def _why_no_cache(spec: DecoderSpec, engine: str, kv: KvType) -> str | None:
    if engine != _CUDA or kv not in EIGHT_BIT_KV:
        return None
    if any(layer.shares_kv_of is not None for layer in spec.layers):
        # They would append as many rows as there are queries, and none are given.
        return "its kernels take no 8-bit keys and values of another layer"
    widest = max((heads.dim for heads in _kinds_of_heads(spec)), default=0)
    if widest > _FLASH_HEAD:
        return f"its kernels for heads of {widest} channels take 16 bits only"
    return None


def check_context(spec: DecoderSpec, engine: str, context: int) -> None:
    """Raise BadInput for a cache of more rows than the engine's kernels take for a decoder."""
    wide = any(
        expands_keys(heads) and heads.q_size > _MOST_UNBLOCKED for heads in _kinds_of_heads(spec)
    )
    if engine == _CUDA and wide and context > _MOST_ROWS:
        raise BadInput(
            f"{engine} cannot run this {spec.family} with a context of {context}: its kernel for "
            f"its widest heads takes at most {_MOST_ROWS} rows; use --context {_MOST_ROWS} or less"
        )


def cache_notes(spec: DecoderSpec, engine: str, kv: KvType) -> tuple[str, ...]:
    """Warnings about the speed of attention over a cache with this engine."""
    if engine != _CUDA:
        return ()
    kinds = _kinds_of_heads(spec)
    if kv in EIGHT_BIT_KV:
        return _eight_bit_notes(spec, kinds, kv)
    wide = [heads for heads in kinds if expands_keys(heads)]
    if not wide:
        return ()
    return (
        f"layers with heads of {wide[0].dim} channels copy their keys and values for each of "
        f"{wide[0].queries} query heads at every step: decoding slows down as the cache grows",
    )


def _eight_bit_notes(spec: DecoderSpec, kinds: list[HeadSizes], kv: KvType) -> tuple[str, ...]:
    wrong = []
    groups = {heads.queries // heads.keys for heads in kinds}.difference(_XQA_QUERIES)
    if groups:
        expected = f"(expected {_options(_XQA_QUERIES)})"
        wrong.append(f"{_options(groups)} query heads per key head {expected}")
    dims = {heads.dim for heads in kinds}.difference(_XQA_HEAD_DIMS)
    if dims:
        wrong.append(f"heads of {_options(dims)} channels (expected {_options(_XQA_HEAD_DIMS)})")
    if spec.attention_softcap or any(layer.window for layer in spec.layers):
        wrong.append("windows or soft caps in attention")
    if not wrong:
        return ()
    return (
        f"the fast kernel for an {kv} cache does not support {' and '.join(wrong)}: decoding is "
        "slower than with a 16-bit cache",
    )


def expands_keys(heads: HeadSizes) -> bool:
    """Whether a layer's keys and values are copied for each query head, all rows of its cache.

    Memory-efficient attention does so, which heads too wide for flash attention take.
    """
    return heads.dim > _FLASH_HEAD and heads.queries > heads.keys


def _kinds_of_heads(spec: DecoderSpec) -> list[HeadSizes]:
    """The heads of all layers with attention, each kind once."""
    return list(dict.fromkeys(spec.heads(layer) for layer in spec.layers if layer.attends))


def _options(values: Iterable[int]) -> str:
    *first, last = map(str, sorted(values))
    return f"{', '.join(first)} or {last}" if first else last
