"""A model in several GGUF files is read whole, whichever part is given."""

import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from edgelm.checkpoint.gguf.reader import GgufFile
from edgelm.checkpoint.source import open_checkpoint, read_spec
from edgelm.errors import BadCheckpoint
from tests.checkpoints.gguf_files import write_gguf
from tests.checkpoints.models import tiny_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tiny_model("llama-untied"), tmp_path_factory.mktemp("whole") / "m.gguf")


def write_parts(whole: Path, folder: Path, shares: list[int], stem: str = "m") -> list[Path]:
    """As llama-gguf-split does: the metadata in the first part, so many tensors in each."""
    reader = gguf.GGUFReader(whole)
    tensors = list(reader.tensors)
    assert sum(shares) == len(tensors)
    paths = []
    for number, share in enumerate(shares):
        path = folder / f"{stem}-{number + 1:05}-of-{len(shares):05}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        if number == 0:
            for key, field in reader.fields.items():
                if not key.startswith("GGUF.") and key != "general.architecture":
                    writer.add_key_value(key, field.contents(), field.types[0])
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", len(shares))
        writer.add_int32("split.tensors.count", len(tensors))
        for one in tensors[:share]:
            writer.add_tensor(one.name, np.array(one.data), raw_dtype=one.tensor_type)
        tensors = tensors[share:]
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return paths


def count(whole: Path) -> int:
    return len(gguf.GGUFReader(whole).tensors)


@pytest.mark.parametrize("first", [0, 10], ids=["first-without-tensors", "tensors-in-all"])
def test_any_part_opens_the_model(whole: Path, tmp_path: Path, first: int) -> None:
    paths = write_parts(whole, tmp_path, [first, 20, count(whole) - first - 20])
    expected = open_checkpoint(whole)
    for path in paths:
        checkpoint = open_checkpoint(path)
        assert checkpoint.spec == expected.spec == read_spec(path)
        assert checkpoint.weight_files == tuple(paths)
        assert checkpoint.path == paths[0]
        assert checkpoint.shapes == expected.shapes
        for name in expected.shapes:
            torch.testing.assert_close(checkpoint.tensor(name), expected.tensor(name))


def test_names_in_capitals(whole: Path, tmp_path: Path) -> None:
    for path in write_parts(whole, tmp_path, [10, count(whole) - 10]):
        path.rename(path.with_name(path.name.upper()))
    checkpoint = open_checkpoint(tmp_path / "M-00002-OF-00002.GGUF")
    assert checkpoint.shapes == open_checkpoint(whole).shapes


def test_the_hash_covers_every_part(whole: Path, tmp_path: Path) -> None:
    paths = write_parts(whole, tmp_path, [10, count(whole) - 10])
    before = open_checkpoint(paths[0]).sha256()
    assert open_checkpoint(paths[1]).sha256() == before
    data = bytearray(paths[1].read_bytes())
    data[-1] ^= 1
    paths[1].write_bytes(data)
    assert open_checkpoint(paths[0]).sha256() != before


def test_a_file_truncated_after_opening_is_an_error(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(whole.read_bytes())
    opened = GgufFile(path)
    os.truncate(path, path.stat().st_size // 2)
    name = "lm_head.weight"  # reading mapped pages that are gone would end the process
    with pytest.raises(
        BadCheckpoint, match=r"m\.gguf cannot be read: it was truncated after it was opened"
    ):
        opened.read(name)


def test_a_missing_part_is_named(whole: Path, tmp_path: Path) -> None:
    paths = write_parts(whole, tmp_path, [0, 10, count(whole) - 10])
    paths[1].unlink()
    message = r"one of 3 parts of a split model, and 1 of them are missing, first m-00002-of-00003"
    for path in (paths[0], paths[2]):
        with pytest.raises(BadCheckpoint, match=message):
            open_checkpoint(path)


def test_a_part_under_another_name(whole: Path, tmp_path: Path) -> None:
    paths = write_parts(whole, tmp_path, [10, count(whole) - 10])
    with pytest.raises(BadCheckpoint, match=r"its name does not lead to the others; expect"):
        open_checkpoint(paths[0].rename(tmp_path / "renamed.gguf"))


def test_parts_of_two_models(whole: Path, tmp_path: Path) -> None:
    paths = write_parts(whole, tmp_path, [10, count(whole) - 10])
    first = paths[0].read_bytes()
    paths[1].write_bytes(first)
    with pytest.raises(BadCheckpoint, match=r"00002-of-00002\.gguf has split\.no 0 and split\.co"):
        open_checkpoint(paths[0])


def test_a_tensor_in_two_parts(whole: Path, tmp_path: Path) -> None:
    whole_count = count(whole)
    paths = write_parts(whole, tmp_path, [10, whole_count - 10])
    (tmp_path / "other").mkdir()
    other = write_parts(whole, tmp_path / "other", [9, whole_count - 9])
    other[1].rename(paths[1])
    with pytest.raises(BadCheckpoint, match=r"is in m-00001-of-00002\.gguf as well; are the parts"):
        open_checkpoint(paths[0])


def test_tensors_that_no_part_has(whole: Path, tmp_path: Path) -> None:
    whole_count = count(whole)
    paths = write_parts(whole, tmp_path, [10, whole_count - 10])
    (tmp_path / "other").mkdir()
    other = write_parts(whole, tmp_path / "other", [11, whole_count - 11])
    other[1].rename(paths[1])
    message = rf"2 parts hold {whole_count - 1} tensors, split\.tensors\.count is {whole_count}"
    with pytest.raises(BadCheckpoint, match=message):
        open_checkpoint(paths[0])
