"""Published measurements: reads the table and selects the rows that the cost model covers.

The table is a CSV file with a header; the columns used are device, power_mode, model,
quantization, engine, batch, prompt_len, output_len, metric, decode_tok_s, prefill_tok_s,
spec_decode and evidence. Rows are left out only by rules with a reason.
"""

import csv
import math
import re
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgelm.devices.planner.cost_model.cost import WEIGHT_ONLY
from edgelm.devices.planner.cost_model.work import Work
from edgelm.devices.published.hardware import Hardware, hardware_named
from edgelm.devices.published.models import Total, model_named
from edgelm.errors import BadInput

COLUMNS = [
    "device",
    "power_mode",
    "model",
    "quantization",
    "engine",
    "batch",
    "prompt_len",
    "output_len",
    "metric",
    "decode_tok_s",
    "prefill_tok_s",
    "spec_decode",
    "evidence",
]

_USUAL_OUTPUT = 128.0
# TensorRT-Edge-LLM's runtime states the length of all prompts of a batch together.
_SUMMED = re.compile(r"decode")
# The protocol of the vLLM rows that include the prompt (Jetson AI Lab, "GenAI benchmarking"): the
# same 50 random prompts are sent in a run whose result is ignored, and then again.
_REPEATED_PROMPTS = 50
# Of the memory, that vLLM has for weights and cache: --gpu-memory-utilization 0.8 counts everything
# that is in use on a board, also by the system, and activations come off it. On AGX Orin, a 32 B
# model's prompts would fit in 0.8 of the memory and need 0.72; its rates show that they do not.
_VLLM_MEMORY = 0.65
# LocalScore's figure is the mean of nine tests, prompts of 16 to 4,096 and outputs of 16 to 3,072.
_LOCALSCORE_PROMPT = _LOCALSCORE_OUTPUT = 1024.0

# (in the quantization's name, bits of a linear weight with its scales, bits of a head weight,
# arithmetic of long prompts). GGUF files keep the head in Q6_K; the others keep it in 16 bits
# unless they say otherwise; a Q4_K_M file of a whole model comes out at these bits.
_QUANTIZATIONS: tuple[tuple[str, float, float, str], ...] = (
    (r"nvfp4 / nvfp4", 4.5, 4.5, "nvfp4"),
    (r"nvfp4a16", 4.5, 16, WEIGHT_ONLY),
    (r"nvfp4", 4.5, 16, "nvfp4"),
    (r"mxfp4", 4.25, 16, WEIGHT_ONLY),
    (r"int4 awq / int4 awq", 4.156, 4.156, WEIGHT_ONLY),
    (r"awq|gptq|w4a16", 4.156, 16, WEIGHT_ONLY),
    (r"q4f16|int4", 4.5, 4.5, WEIGHT_ONLY),
    (r"q4_k|ollama default|^$", 4.8, 6.56, WEIGHT_ONLY),
    (r"q4_0|iq4", 4.5, 6.56, WEIGHT_ONLY),
    (r"q5_k", 5.7, 6.56, WEIGHT_ONLY),
    (r"q6_k", 6.56, 6.56, WEIGHT_ONLY),
    (r"q8_0", 8.5, 8.5, WEIGHT_ONLY),
    (r"q3_k", 3.9, 6.56, WEIGHT_ONLY),
    (r"q2_k", 3.2, 6.56, WEIGHT_ONLY),
    (r"fp8", 8.0, 16, "fp8"),
    (r"w8a16|int8", 8.1, 16, WEIGHT_ONLY),
    (r"bf16|fp16|f16|w16a16", 16, 16, "fp16"),
)
# Their default quantization is Q4_K_M.
_GGUF_ENGINES = ("llama.cpp", "llamafile")
_ENGINES = (
    (r"edge-llm", "tensorrt-edge-llm"),
    (r"vllm", "vllm"),
    # llamafile of 2025: launches every kernel for each token, without CUDA graphs.
    (r"localscore|llamafile", "llamafile"),
    (r"ollama|(?<!ex)llama|lm studio", "llama.cpp"),
    (r"mlc", "mlc"),
)


class Row(msgspec.Struct, frozen=True):
    """One published measurement that the cost model can predict."""

    device: str
    hardware: Hardware
    model: Total
    work: Work
    engine: str
    arithmetic: str
    prompt: float
    output: float
    depth: float
    decode_tok_s: float | None
    prefill_tok_s: float | None
    includes_prompt: bool
    crowd: bool
    batch: int = 1

    @property
    def decode_ms(self) -> float | None:
        """Time of a step of all sequences, including the prompts' share if the metric has it."""
        return 1e3 * self.batch / self.decode_tok_s if self.decode_tok_s else None

    @property
    def prefill_ms(self) -> float | None:
        """Time of the prompt."""
        return 1e3 * self.prompt / self.prefill_tok_s if self.prefill_tok_s else None


class Table(msgspec.Struct, frozen=True):
    """The usable rows, those of several sequences, and how many were left out for each reason."""

    rows: tuple[Row, ...]
    left_out: dict[str, int]
    batched: tuple[Row, ...] = ()


def read_rows(path: Path) -> Table:
    """Read a table of published measurements.

    Raises:
        BadInput: no such file, or a column is missing.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                raise BadInput(
                    f"{path}: no column {', '.join(missing)}; expected {', '.join(COLUMNS)}"
                )
            records = list(reader)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}: {error}") from None
    rows: list[Row] = []
    left_out: dict[str, int] = {}
    for record in records:
        reason = next((why for why, holds in _BEFORE if holds(record)), None)
        row = _row(record) if reason is None else None
        if reason is None and isinstance(row, str):
            reason, row = row, None
        if isinstance(row, Row):
            reason = next((why for why, holds in _AFTER if holds(row)), None)
        if reason is not None:
            left_out[reason] = left_out.get(reason, 0) + 1
        elif isinstance(row, Row):
            rows.append(row)
    return Table(
        tuple(one for one in rows if one.batch == 1),
        dict(sorted(left_out.items(), key=lambda item: -item[1])),
        tuple(one for one in rows if one.batch > 1),
    )


_Record = dict[str, str]
_NONE = ("", "-", "0", "no", "none", "false")

_BEFORE: tuple[tuple[str, Callable[[_Record], bool]], ...] = (
    ("speculative decoding", lambda r: r["spec_decode"].strip().lower() not in _NONE),
    ("no rate stated", lambda r: not (_number(r["decode_tok_s"]) or _number(r["prefill_tok_s"]))),
    ("part of the model ran on the CPU", lambda r: "cpu split" in r["model"].lower()),
)


def _memory_short(row: Row) -> bool:
    return row.work.resident_bytes > 0.95 * row.hardware.memory_bytes


def _reads(row: Row) -> float:
    """Bytes of the weights per token time, as a share of the bandwidth."""
    if row.decode_ms is None:
        return 1.0
    read = row.work.linear_bytes + row.work.head_bytes
    return read / (row.decode_ms * row.hardware.mode.bandwidth_gb_s.value * 1e6)


_AFTER: tuple[tuple[str, Callable[[Row], bool]], ...] = (
    ("several sequences without a rate of decoding", lambda r: r.batch > 1 and not r.decode_tok_s),
    ("the model does not fit the device's memory: it ran in part on the CPU", _memory_short),
    (
        "less than 5% of the bandwidth (15% with llamafile above 300 GB/s): bound by its host",
        lambda row: (
            _reads(row)
            < (
                0.15
                if row.engine == "llamafile" and row.hardware.mode.bandwidth_gb_s.value > 300
                else 0.05
            )
        ),
    ),
)


def _row(record: _Record) -> Row | str:
    """The row, or the reason why it is left out."""
    model = model_named(record["model"])
    if model is None:
        return "the model's shape is not known"
    hardware = hardware_named(record["device"], record["power_mode"])
    if hardware is None:
        return "the device's speeds are not known"
    engine = _first(_ENGINES, record["engine"])
    if engine is None:
        return "an engine with too few rows"
    bits = _quantization(record["quantization"], record["model"], engine)
    if bits is None:
        return "the quantization is not known"
    linear_bits, head_bits, arithmetic = bits
    if arithmetic != WEIGHT_ONLY and arithmetic not in hardware.mode.dense_tflops:
        arithmetic = WEIGHT_ONLY
    localscore = "localscore" in record["metric"].lower()
    prompt = _number(record["prompt_len"]) or (_LOCALSCORE_PROMPT if localscore else 0.0)
    output = _number(record["output_len"]) or (_LOCALSCORE_OUTPUT if localscore else _USUAL_OUTPUT)
    if not (_number(record["decode_tok_s"]) or prompt):
        return "a prompt's rate without its length"
    past = "pastkv" in record["metric"].lower()
    batch = _first_number(record["batch"]) or 1
    if batch > 1 and engine == "tensorrt-edge-llm" and _SUMMED.match(record["metric"]) and not past:
        prompt /= batch
    # The rate of several prompts is one prompt's in some tables, and that of all in others.
    prefill = _number(record["prefill_tok_s"]) if prompt and batch == 1 else None
    wide = _wide_parameters(record["quantization"], engine, model)
    work = model.work(linear_bits, head_bits, wide)
    return Row(
        device=record["device"],
        hardware=hardware,
        model=model,
        work=work,
        engine=engine,
        arithmetic=arithmetic,
        prompt=prompt,
        output=output,
        depth=prompt if past else prompt + output / 2,
        decode_tok_s=_number(record["decode_tok_s"]),
        prefill_tok_s=prefill,
        includes_prompt=(
            "incl" in record["metric"].lower()
            and prompt > 0
            and not _prompts_cached(engine, model, work, hardware, prompt + output)
        ),
        crowd="crowd" in record["evidence"].lower(),
        batch=batch,
    )


def _quantization(name: str, model: str, engine: str) -> tuple[float, float, str] | None:
    lowered = name.strip().lower()
    if not lowered:  # some tables only have it in the file name
        lowered = next(iter(re.findall(r"i?q\d_\w+", model.lower())), "")
    if not lowered and engine not in _GGUF_ENGINES:
        return None
    for pattern, linear, head, arithmetic in _QUANTIZATIONS:
        if re.search(pattern, lowered):
            return linear, head, arithmetic
    return None


def _wide_parameters(quantization: str, engine: str, model: Total) -> float:
    """Linear parameters that a quantized checkpoint keeps in 16 bits.

    Published checkpoints of models with linear attention leave it out of the quantization: Qwen's
    GPTQ files all attention and shared experts (`dynamic` in their quantization_config), those
    for vLLM the linear attention (`ignore` in llm-compressor's recipes of these models).
    TensorRT-Edge-LLM quantizes AWQ itself, all layers.
    """
    lowered = quantization.lower()
    if re.search("nvfp4|fp8", lowered):
        return model.kept_parameters
    if not model.recurrent_parameters:
        return 0.0
    if "gptq" in lowered:
        return model.attention_parameters + model.shared_expert_parameters
    if engine == "vllm" and re.search(r"awq|w4a16", lowered):
        return model.recurrent_parameters
    return 0.0


def _prompts_cached(
    engine: str, model: Total, work: Work, hardware: Hardware, tokens: float
) -> bool:
    """Whether a repeated benchmark finds its prompts in vLLM's prefix cache.

    The cache is in use unless a model has recurrent layers, and drops the oldest prompts first:
    it has all of them or, when they come in the same order again, none.
    """
    if engine != "vllm" or model.recurrent_layers:
        return False
    pool = _VLLM_MEMORY * hardware.memory_bytes - work.resident_bytes
    per_token = sum(cache.bytes_per_token for cache in work.caches)
    return pool > _REPEATED_PROMPTS * tokens * per_token


def _first(table: tuple[tuple[str, str], ...], name: str) -> str | None:
    lowered = name.lower()
    return next((value for pattern, value in table if re.search(pattern, lowered)), None)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value > 0 and math.isfinite(value) else None


def _first_number(text: str) -> int | None:
    """`8 (matches c=8)` is 8."""
    found = re.match(r"\s*(\d+)", text)
    return int(found[1]) if found else None
