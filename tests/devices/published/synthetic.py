"""Rows made up from known coefficients, and the same as a table of published measurements."""

import csv
from collections.abc import Iterable
from pathlib import Path

import msgspec

from edgelm.devices.planner.cost_model import cost
from edgelm.devices.planner.cost_model.cost import WEIGHT_ONLY, Coefficients
from edgelm.devices.profile_tables import Figure, PowerMode
from edgelm.devices.published.hardware import Hardware
from edgelm.devices.published.models import Total, model_named
from edgelm.devices.published.rows import COLUMNS, Row
from edgelm.devices.published.terms import Observation, observations

# Weights and cache are read at one rate: the fit has one factor for both.
TRUE = Coefficients(
    bandwidth=0.85,
    cache_bandwidth=0.85,
    compute=0.4,
    attention=0.25,
    layer_us=80.0,
    unpack=0.07,
    prompt_layers=1.5,
    recurrent_us=70.0,
)
DENSE = ("qwen2.5-0.5b", "qwen2.5-1.5b", "llama-3.2-3b", "llama-3.1-8b", "qwen2.5-14b")
PROMPTS = (64.0, 1024.0)


def box(
    name: str = "box",
    architecture: str = "ampere",
    *,
    bandwidth_gb_s: float = 200.0,
    fp16_tflops: float = 40.0,
    clock_ghz: float | None = 1.25,
    sm_count: float | None = 16.0,
) -> Hardware:
    """A device; its clock of all multiprocessors is left out where one of the two is None."""

    def figure(value: float) -> Figure:
        return Figure(value, "made up")

    mode = PowerMode(
        name="default",
        bandwidth_gb_s=figure(bandwidth_gb_s),
        dense_tflops={"fp16": figure(fp16_tflops), "nvfp4": figure(8 * fp16_tflops)},
        clock_ghz=figure(clock_ghz) if clock_ghz else None,
        sm_count=figure(sm_count) if sm_count else None,
    )
    size = 64 * 2**30
    return Hardware(name, architecture, mode, size, shared=True, chip=f"{architecture} chip")


def known(name: str) -> Total:
    """A known model."""
    model = model_named(name)
    assert model is not None, name
    return model


def row(
    model: str = "llama-3.1-8b",
    hardware: Hardware | None = None,
    engine: str = "vllm",
    *,
    bits: float = 4.5,
    arithmetic: str = WEIGHT_ONLY,
    prompt: float = 512.0,
    output: float = 128.0,
    decode_tok_s: float | None = None,
    prefill_tok_s: float | None = None,
    includes_prompt: bool = False,
    crowd: bool = False,
) -> Row:
    """One row, by default without any rate."""
    hardware = hardware or box()
    return Row(
        device=hardware.name,
        hardware=hardware,
        model=known(model),
        work=known(model).work(bits, 16),
        engine=engine,
        arithmetic=arithmetic,
        prompt=prompt,
        output=output,
        depth=prompt + output / 2,
        decode_tok_s=decode_tok_s,
        prefill_tok_s=prefill_tok_s,
        includes_prompt=includes_prompt,
        crowd=crowd,
    )


def true_decode_ms(row: Row, how: Coefficients) -> float:
    """What the cost model says a token of the row takes."""
    step = cost.decode_ms(row.work, row.hardware.mode, how, depth=row.depth).value
    share = true_prefill_ms(row, how) / row.output if row.includes_prompt else 0.0
    return step + share


def true_prefill_ms(row: Row, how: Coefficients) -> float:
    """What the cost model says the prompt of the row takes."""
    mode = row.hardware.mode
    return cost.prefill_ms(row.work, mode, how, tokens=row.prompt, arithmetic=row.arithmetic).value


def measured(row: Row, how: Coefficients, *, slower: float = 1.0) -> Row:
    """The row with the rates of the cost model, `slower` times as slow."""
    return msgspec.structs.replace(
        row,
        decode_tok_s=1e3 / (slower * true_decode_ms(row, how)),
        prefill_tok_s=1e3 * row.prompt / (slower * true_prefill_ms(row, how)),
    )


def sample(
    hardware: Hardware,
    engine: str = "vllm",
    how: Coefficients = TRUE,
    *,
    models: Iterable[str] = DENSE,
    slower: float = 1.0,
    crowd: bool = False,
) -> list[Observation]:
    """Decode and prefill times of a few models at two lengths of prompt on one device."""
    rows = [
        measured(row(model, hardware, engine, prompt=prompt, crowd=crowd), how, slower=slower)
        for model in models
        for prompt in PROMPTS
    ]
    return observations(tuple(rows))


def factors(how: Coefficients) -> dict[str, float]:
    """What the fit multiplies the terms with, from the coefficients of the cost model."""
    return {
        "read": 1 / how.bandwidth,
        "unpack": how.unpack,
        "layers": how.layer_us,
        "prompt_layers": how.layer_us * how.prompt_layers,
        "matrices": 1 / how.compute,
        "attention": 1 / how.attention,
        "recurrence": how.recurrent_us,
    }


RECORD = {
    "device": "Jetson AGX Orin 64GB",
    "power_mode": "MAXN",
    "model": "Llama-3.1-8B-Instruct",
    "quantization": "INT4 AWQ",
    "engine": "vLLM",
    "batch": "1",
    "prompt_len": "512",
    "output_len": "128",
    "metric": "decode",
    "decode_tok_s": "25.5",
    "prefill_tok_s": "1400",
    "spec_decode": "",
    "evidence": "vendor-published",
}


def write_csv(path: Path, records: Iterable[dict[str, str]]) -> Path:
    """A table of published measurements, every record as `RECORD` but for what it states."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(RECORD | record for record in records)
    return path
