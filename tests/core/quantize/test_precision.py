"""Names, options and bits of the precisions."""

from typing import get_args

import msgspec
import pytest

from edgelm.errors import BadInput, UnknownName
from edgelm.quantize.precision import (
    KV_BYTES,
    Fp32,
    Int4,
    Int8,
    KvType,
    WeightPrecision,
    describe,
    parse_precision,
)


@pytest.mark.parametrize(
    ("precision", "bits"),
    [
        (Fp32(), 32),
        (Int8(), 8 + 16 / 32),
        (Int8(group_size=128, symmetric=False), 8 + (16 + 8) / 128),
        (Int4(), 4 + (16 + 4) / 64),
        (Int4(group_size=64, symmetric=True), 4 + 16 / 64),
    ],
    ids=str,
)
def test_bits_count_scales_and_zero_points(precision: WeightPrecision, bits: float) -> None:
    assert precision.bits_per_weight == bits


@pytest.mark.parametrize(
    ("precision", "text"),
    [
        (Fp32(), "fp32"),
        (Int8(), "int8 g32"),
        (Int4(), "int4 g64 zp"),
        (Int4(group_size=128, symmetric=True), "int4 g128"),
        (Int8(symmetric=False), "int8 g32 zp"),
    ],
    ids=str,
)
def test_description(precision: WeightPrecision, text: str) -> None:
    assert describe(precision) == text


def test_options_replace_the_defaults() -> None:
    assert parse_precision("int4") == Int4(group_size=64, symmetric=False)
    assert parse_precision("int8") == Int8(group_size=32, symmetric=True)
    assert parse_precision("int4", group_size=128, symmetric=True) == Int4(128, symmetric=True)
    assert parse_precision("int8", symmetric=False) == Int8(32, symmetric=False)


def test_fp32_has_no_groups() -> None:
    assert parse_precision("fp32", group_size=64, symmetric=True) == Fp32()


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(
        UnknownName, match="unknown precision 'int3'; known: auto, fp32, fp16, bf16"
    ):
        parse_precision("int3")


def test_group_size_is_one_of_a_few() -> None:
    with pytest.raises(BadInput, match=r"group size 48 is not one of \[16, 32, 64, 128, 256\]"):
        parse_precision("int4", group_size=48)


@pytest.mark.parametrize(
    "precision", [Fp32(), Int8(64, symmetric=False), Int4(16, symmetric=True)], ids=describe
)
def test_survives_the_manifest(precision: WeightPrecision) -> None:
    data = msgspec.json.encode(precision)
    assert msgspec.json.decode(data, type=WeightPrecision) == precision


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("fp32", 32),
        ("fp16", 16),
        ("bf16", 16),
        ("int8", 8.5),
        ("fp8", 8),
        ("nvfp4", 4.5),  # a scale of eight bits for sixteen weights
        ("int4", 4.3125),
    ],
)
def test_bits_of_engines_too(name: str, bits: float) -> None:
    assert parse_precision(name).bits_per_weight == bits


def test_bits_follow_the_options() -> None:
    assert parse_precision("int4", group_size=32, symmetric=True).bits_per_weight == 4 + 16 / 32
    assert parse_precision("int8", group_size=128).bits_per_weight == 8 + 16 / 128
    assert parse_precision("fp16", group_size=32).bits_per_weight == 16


def test_a_scale_a_channel_costs_nothing_beside_its_weights() -> None:
    assert Int8(group_size=0).bits_per_weight == 8
    assert describe(Int8(group_size=0)) == "int8 channel"


def test_every_cache_type_has_its_bytes() -> None:
    assert set(KV_BYTES) == set(get_args(KvType))
    assert KV_BYTES == {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}
