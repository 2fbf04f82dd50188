"""Reading a table: every rule that leaves rows out, and what becomes of the others."""

from pathlib import Path

import pytest

from edgelm.devices.planner.cost_model.cost import WEIGHT_ONLY
from edgelm.devices.published.rows import COLUMNS, Row, read_rows
from edgelm.errors import BadInput
from tests.devices.published.synthetic import RECORD, write_csv

_HOST = "less than 5% of the bandwidth (15% with llamafile above 300 GB/s): bound by its host"
_SHORT = "the model does not fit the device's memory: it ran in part on the CPU"
# Llama 3.1 8B in 4.8 bits is 4.6 GB a token: 1,010 GB/s could read it 218 times a second, and
# 168 GB/s 37 times.
_LOCAL = {"engine": "LocalScore (llamafile / llama.cpp)", "quantization": "Q4_K - Medium"}
_LEFT_OUT = {
    "batch": (
        {"batch": "8", "decode_tok_s": "", "prefill_tok_s": "900"},
        "several sequences without a rate of decoding",
    ),
    "speculation": ({"spec_decode": "EAGLE-3"}, "speculative decoding"),
    "no-rate": ({"decode_tok_s": "", "prefill_tok_s": ""}, "no rate stated"),
    "cpu-split": (
        {"model": "Qwen3-4B (official ollama blob, 38% CPU split)"},
        "part of the model ran on the CPU",
    ),
    "model": ({"model": "Gemma 4 31B"}, "the model's shape is not known"),
    "device": ({"device": "NVIDIA T1200 Laptop GPU 4GB"}, "the device's speeds are not known"),
    "engine": ({"engine": "pegainfer"}, "an engine with too few rows"),
    "quantization": (
        {"quantization": "not stated in excerpt"},
        "the quantization is not known",
    ),
    "memory": (
        {"device": "Jetson Orin Nano 8GB", "quantization": "BF16", "decode_tok_s": "4"},
        _SHORT,
    ),
    "host": ({"device": "RTX 4090", "decode_tok_s": "8"}, _HOST),
    "host-llamafile": (_LOCAL | {"device": "RTX 4090", "decode_tok_s": "30"}, _HOST),
}
_KEPT = {
    "as-it-is": {},
    "batch-with-words": {"batch": " 1 (single stream)"},
    "decode-alone": {"prefill_tok_s": ""},
    "prefill-alone": {"decode_tok_s": ""},
    "above-5%": {"device": "RTX 4090", "decode_tok_s": "30"},
    "llamafile-above-15%": _LOCAL | {"device": "RTX 4090", "decode_tok_s": "40"},
    "llamafile-below-300-GB/s": _LOCAL
    | {"device": "NVIDIA GeForce RTX 3050 6GB", "decode_tok_s": "4"},
}


def only(path: Path, **over: str) -> Row:
    """The row of a table that has only one."""
    (row,) = read_rows(write_csv(path, [over])).rows
    return row


@pytest.mark.parametrize(("over", "reason"), _LEFT_OUT.values(), ids=_LEFT_OUT)
def test_left_out_and_why(tmp_path: Path, over: dict[str, str], reason: str) -> None:
    table = read_rows(write_csv(tmp_path / "rows.csv", [over]))
    assert table.rows == ()
    assert table.left_out == {reason: 1}


@pytest.mark.parametrize("over", _KEPT.values(), ids=_KEPT)
def test_kept(tmp_path: Path, over: dict[str, str]) -> None:
    table = read_rows(write_csv(tmp_path / "rows.csv", [over]))
    assert len(table.rows) == 1
    assert table.left_out == {}


def test_reasons_are_counted_once_a_row_and_the_most_frequent_is_first(tmp_path: Path) -> None:
    records = [{}, {"batch": "8", "spec_decode": "EAGLE-3"}]
    records += 3 * [{"model": "unheard of", "engine": "unheard of"}] + 2 * [{"engine": "ds4"}]
    table = read_rows(write_csv(tmp_path / "rows.csv", records))
    assert len(table.rows) == 1
    assert list(table.left_out.items()) == [
        ("the model's shape is not known", 3),
        ("an engine with too few rows", 2),
        ("speculative decoding", 1),
    ]


def test_row_as_it_is_read(tmp_path: Path) -> None:
    row = only(tmp_path / "rows.csv")
    assert (row.device, row.hardware.name) == ("Jetson AGX Orin 64GB", "jetson-agx-orin-64gb")
    assert (row.model.name, row.engine) == ("llama-3-8b", "vllm")
    assert row.work == row.model.work(4.156, 16)
    assert (row.prompt, row.output, row.depth) == (512, 128, 512 + 64)
    assert row.decode_ms == pytest.approx(1e3 / 25.5)
    assert row.prefill_ms == pytest.approx(1e3 * 512 / 1400)
    assert not row.includes_prompt
    assert not row.crowd


@pytest.mark.parametrize(
    ("stated", "name"),
    [
        ("TensorRT-Edge-LLM 0.7", "tensorrt-edge-llm"),
        ("Edge-LLM", "tensorrt-edge-llm"),
        ("vLLM?", "vllm"),
        ("LocalScore (llamafile / llama.cpp)", "llamafile"),
        ("llamacpp", "llama.cpp"),
        ("llama.cpp b11538 CUDA13", "llama.cpp"),
        ("ollama", "llama.cpp"),
        ("LM Studio/llama.cpp", "llama.cpp"),
        ("MLC 0.1.1", "mlc"),
    ],
)
def test_engine(tmp_path: Path, stated: str, name: str) -> None:
    assert only(tmp_path / "rows.csv", engine=stated).engine == name


@pytest.mark.parametrize(
    ("evidence", "crowd"),
    [("crowd-sourced", True), ("vendor-published", False), ("independent, raw logs", False)],
)
def test_evidence(tmp_path: Path, evidence: str, crowd: bool) -> None:
    assert only(tmp_path / "rows.csv", evidence=evidence).crowd is crowd


@pytest.mark.parametrize(
    ("over", "prompt", "output", "depth"),
    [
        ({}, 512, 128, 576),
        ({"output_len": ""}, 512, 128, 576),
        ({"prompt_len": "2048.0", "output_len": "256"}, 2048, 256, 2176),
        ({"prompt_len": "", "output_len": "300.0"}, 0, 300, 150),
        ({"prompt_len": "2048", "metric": "decode (llm_bench, pastKV=2048)"}, 2048, 128, 2048),
        ({"prompt_len": "about 500", "output_len": "n/a"}, 0, 128, 64),
    ],
    ids=["stated", "usual-output", "long", "no-prompt", "past", "words"],
)
def test_lengths(
    tmp_path: Path, over: dict[str, str], prompt: float, output: float, depth: float
) -> None:
    row = only(tmp_path / "rows.csv", **over)
    assert (row.prompt, row.output, row.depth) == (prompt, output, depth)


def test_localscore_is_the_mean_of_its_tests(tmp_path: Path) -> None:
    blank = _LOCAL | {
        "metric": "generation / prompt (LocalScore averages over its 9 tests)",
        "prompt_len": "",
        "output_len": "",
    }
    row = only(tmp_path / "rows.csv", **blank)
    assert (row.prompt, row.output, row.depth) == (1024, 1024, 1536)
    assert row.prefill_ms == pytest.approx(1e3 * 1024 / 1400)
    stated = only(tmp_path / "rows.csv", **(blank | {"prompt_len": "16", "output_len": "32"}))
    assert (stated.prompt, stated.output) == (16, 32)


def test_prompt_of_no_stated_length_has_no_time(tmp_path: Path) -> None:
    row = only(tmp_path / "rows.csv", prompt_len="")
    assert row.prefill_ms is None
    assert row.decode_ms is not None


@pytest.mark.parametrize(
    ("metric", "length", "includes"),
    [
        ("output throughput incl. prefill (vllm bench)", "2048", True),
        ("tokens/s (incl. prefill?)", "512", True),
        ("output throughput incl. prefill (vllm bench)", "", False),
        ("output throughput", "2048", False),
        ("decode", "2048", False),
    ],
)
def test_includes_prompt(tmp_path: Path, metric: str, length: str, includes: bool) -> None:
    row = only(tmp_path / "rows.csv", engine="llama.cpp", metric=metric, prompt_len=length)
    assert row.includes_prompt is includes


# 50 prompts of 2,048 tokens and outputs of 128, with 128 KiB (8 B), 112 (1.7 B, 3 B), 320 (70 B)
# or 256 (32 B) of cache a token, beside the weights in 0.65 of 16, 64 or 128 GB.
@pytest.mark.parametrize(
    ("device", "model", "engine", "cached"),
    [
        ("Jetson AGX Orin 64GB", "Llama 3.1 8B", "vLLM", True),  # 14 of 37 GB
        ("Jetson AGX Orin 64GB", "Qwen3-32B", "vLLM", False),  # 29 of 25
        ("Jetson AGX Orin 64GB", "Llama 3.3 70B", "vLLM", False),  # 36 of 4
        ("Jetson AGX Thor (T5000)", "Llama 3.3 70B", "vLLM", True),  # 36 of 47
        ("Jetson Orin NX 16GB", "Qwen3-1.7B", "vLLM", False),  # 12 of 9
        ("Jetson Orin NX 16GB", "Llama 3.2 3B", "vLLM", False),
        # Caches without prefixes: of models with states, and of other engines.
        ("Jetson AGX Thor (T5000)", "Qwen3.5-4B", "vLLM", False),
        ("Jetson AGX Orin 64GB", "Llama 3.1 8B", "llama.cpp", False),
    ],
)
def test_prompts_of_a_repeated_benchmark_are_cached_if_all_fit(
    tmp_path: Path, device: str, model: str, engine: str, cached: bool
) -> None:
    over = {"device": device, "model": model, "engine": engine, "prompt_len": "2048"}
    metric = "output throughput incl. prefill (vllm bench)"
    row = only(tmp_path / "rows.csv", **over, metric=metric, decode_tok_s="20", output_len="128")
    assert row.includes_prompt is not cached
    assert row.depth == 2048 + 64  # the cache is read all the same


@pytest.mark.parametrize(
    ("device", "stated", "arithmetic"),
    [
        ("Jetson AGX Thor (T5000)", "NVFP4", "nvfp4"),
        ("Jetson AGX Orin 64GB", "NVFP4", WEIGHT_ONLY),
        ("Jetson AGX Orin 64GB", "FP8", WEIGHT_ONLY),
        ("Jetson AGX Orin 64GB", "BF16", "fp16"),
        ("Jetson AGX Thor (T5000)", "INT4 AWQ", WEIGHT_ONLY),
    ],
)
def test_arithmetic_that_the_device_lacks(
    tmp_path: Path, device: str, stated: str, arithmetic: str
) -> None:
    row = only(tmp_path / "rows.csv", device=device, quantization=stated, power_mode="")
    assert row.arithmetic == arithmetic


@pytest.mark.parametrize("column", COLUMNS)
def test_missing_column_is_named(tmp_path: Path, column: str) -> None:
    path = tmp_path / "rows.csv"
    names = [name for name in COLUMNS if name != column]
    path.write_text(f"{','.join(names)}\n{','.join(RECORD[name] for name in names)}\n")
    expected = rf"rows\.csv: no column {column}; expected {', '.join(COLUMNS)}$"
    with pytest.raises(BadInput, match=expected):
        read_rows(path)


def test_columns_of_no_use_are_ignored(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", [{}])
    wider = "\n".join(line + ",more" for line in path.read_text().splitlines())
    path.write_text(wider)
    assert len(read_rows(path).rows) == 1


def test_empty_file_has_no_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.touch()
    with pytest.raises(BadInput, match=r"no column device, power_mode, model, .*, evidence; "):
        read_rows(path)


def test_header_alone_is_an_empty_table(tmp_path: Path) -> None:
    table = read_rows(write_csv(tmp_path / "rows.csv", []))
    assert (table.rows, table.left_out) == ((), {})


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"gone\.csv: .*No such file or directory"):
        read_rows(tmp_path / "gone.csv")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="Is a directory"):
        read_rows(tmp_path)


def test_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"device\xff\xfe,power_mode\n")
    with pytest.raises(BadInput, match=r"rows\.csv: 'utf-8' codec can't decode"):
        read_rows(path)
