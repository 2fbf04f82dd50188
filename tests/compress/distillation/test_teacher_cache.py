"""A teacher's predictions on disk: what they are, how large, that an interrupted build resumes."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
import torch

import edgelm.compress.distillation.teacher_cache as teacher_cache
from edgelm.compress.data.packing import PackedTokens
from edgelm.compress.distillation.cache_settings import CacheSettings
from edgelm.compress.distillation.loss.losses import (
    Sampled,
    TopK,
    forward_kl,
    sampled_cross_entropy,
)
from edgelm.compress.distillation.loss.objective import Objective
from edgelm.compress.distillation.student_teacher import Distiller
from edgelm.compress.distillation.teacher_cache import TeacherCache, build_cache, cache_bytes
from edgelm.compress.distillation.train import distill
from edgelm.compress.evaluation.held_out import held_out_divergence
from edgelm.errors import BadInput, DoesNotFit
from tests.checkpoints.models import tiny_model
from tests.compress.distillation import cache_processes
from tests.compress.distillation.cache_processes import COUNT
from tests.compress.training import SETTINGS, rows, teacher_and_student
from tests.forks import run_forked

KINDS: tuple[Literal["top-k", "sampled"], ...] = ("top-k", "sampled")
CPU = torch.device("cpu")
DATA = rows(10)


@pytest.fixture(scope="module")
def teacher() -> Any:
    return teacher_and_student()[0]


def files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def predicted(teacher: Any, data: PackedTokens) -> torch.Tensor:
    """The teacher's logits at all but the last position, [rows * (length - 1), vocab]."""
    with torch.inference_mode():
        logits: torch.Tensor = teacher(data.batch(range(len(data)))).logits
    return logits[:, :-1].flatten(0, 1)


def test_top_k_are_the_likeliest_and_the_tail_is_the_rest(teacher: Any, tmp_path: Path) -> None:
    cache = build_cache(teacher, "t", DATA, CacheSettings("top-k", 5), tmp_path / "cache")
    kept = cache.rows(range(10), CPU)
    probabilities = predicted(teacher, DATA).softmax(-1)
    expected = probabilities.topk(5)
    assert isinstance(kept, TopK)
    assert kept.ids.dtype == torch.int64
    assert kept.ids.shape == (10 * 15, 5)
    torch.testing.assert_close(kept.probabilities, expected.values, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(
        probabilities.gather(1, kept.ids), expected.values, rtol=1e-4, atol=1e-7
    )
    mass = probabilities.scatter(1, kept.ids, 0).sum(-1)
    assert mass.mean() > 0.1, "a tail worth keeping"
    torch.testing.assert_close(1 - kept.probabilities.sum(-1), mass, rtol=0, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt-neox"])
def test_rows_by_index(family: str, tmp_path: Path) -> None:
    """Families name their decoder differently."""
    teacher = tiny_model(family)
    cache = build_cache(teacher, "t", DATA, CacheSettings("top-k", 1), tmp_path)
    likeliest = predicted(teacher, DATA).argmax(-1).view(10, 15)
    kept = cache.rows(np.array([7, 2]), CPU)
    assert kept.ids.flatten().tolist() == likeliest[[7, 2]].flatten().tolist()


def test_sampled_gradient_is_unbiased(teacher: Any, tmp_path: Path) -> None:
    """Many rows of the same text: frequencies are probabilities, draws of rows independent."""
    copies, size = 256, 8
    text = rows(1).rows
    data = PackedTokens(np.repeat(text, copies, axis=0))
    cache = build_cache(teacher, "t", data, CacheSettings("sampled", size, seed=3), tmp_path)
    kept = cache.rows(range(copies), CPU)
    assert isinstance(kept, Sampled)
    assert kept.weights.sum(-1).tolist() == pytest.approx([1.0] * copies * 15)

    logits = predicted(teacher, PackedTokens(text))
    students = 2 * torch.randn(15, 128, generator=torch.Generator().manual_seed(0))
    _, gradients = sampled_cross_entropy(students.repeat(copies, 1), kept)
    _, expected = forward_kl(students.clone(), logits.clone())
    error = gradients.view(copies, 15, 128).mean(0) - expected
    p = logits.softmax(-1)
    # Squared errors in units of the variance that independent draws have, where they are many.
    z = (error.square() / (p * (1 - p) / (copies * size)))[p > 2e-3]
    assert z.numel() > 400
    assert 0.85 < float(z.mean()) < 1.15
    assert float(z.max()) < 25


def test_seeds_draw_other_tokens(teacher: Any, tmp_path: Path) -> None:
    def drawn(name: str, seed: int) -> torch.Tensor:
        settings = CacheSettings("sampled", 4, seed)
        return build_cache(teacher, "t", DATA, settings, tmp_path / name).rows(range(10), CPU).ids

    assert torch.equal(drawn("a", 0), drawn("b", 0))
    assert not torch.equal(drawn("a", 0), drawn("c", 1))


@pytest.mark.parametrize("vocab", [128, 70_000])
@pytest.mark.parametrize("kind", KINDS)
def test_size_is_known_before(
    kind: Literal["top-k", "sampled"], vocab: int, tmp_path: Path
) -> None:
    model = tiny_model("llama", vocab_size=vocab, num_hidden_layers=1)
    settings, data = CacheSettings(kind, 3), rows(2)
    expected = cache_bytes(data, vocab, settings)
    each = (2 if vocab <= 65_536 else 4) + (2 if kind == "top-k" else 0)
    assert expected == 2 * 15 * 3 * each
    cache = build_cache(model, "t", data, settings, tmp_path)
    on_disk = files(tmp_path)
    records = [on_disk.pop(name) for name in tuple(on_disk) if name.endswith("cache.json")]
    assert sum(map(len, on_disk.values())) == expected
    assert max(map(len, records)) < 500
    ids = cache.rows(range(2), CPU).ids
    assert vocab == 128 or int(ids.max()) > 65_536, "ids beyond two bytes"
    if kind == "top-k":
        assert torch.equal(ids, predicted(model, data).topk(3).indices)


@pytest.mark.parametrize("parts", [1, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_build_resumes_to_the_same_bytes(
    teacher: Any,
    kind: Literal["top-k", "sampled"],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    parts: int,
) -> None:
    monkeypatch.setattr(teacher_cache, "_PARTS", parts)  # 1: an interruption within a part
    settings, done = CacheSettings(kind, 4), list[int]()
    build_cache(teacher, "t", DATA, settings, tmp_path / "whole", done.append)
    assert done == [4, 8, 10]

    def kill(rows: int) -> None:
        if rows == 8:
            raise KeyboardInterrupt

    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        build_cache(teacher, "t", DATA, settings, folder, kill)
    with pytest.raises(
        BadInput, match="parts does not hold a complete teacher cache; build it first"
    ):
        TeacherCache(folder)
    if parts == 1:
        half = np.memmap(folder / "part-00000" / "ids.bin", np.uint16, "r+", shape=(10, 15, 4))
        half[8:] = 77  # torn: written by a batch whose end was never recorded
        half.flush()
    else:
        (folder / "part-00002").mkdir()
        (folder / "part-00002" / "ids.bin").write_bytes(b"77")
    done.clear()
    build_cache(teacher, "t", DATA, settings, folder, done.append)
    assert done == [10]
    assert files(folder) == files(tmp_path / "whole")


def test_processes_divide_the_parts(tmp_path: Path) -> None:
    """Two of them, of which one is killed, and then three: the bytes of one."""
    module, folder = "tests.compress.distillation.cache_processes", tmp_path / "shared"
    assert run_forked(module, str(folder), "24", processes=2) == -9
    assert 0 < len(list(folder.glob("part-*"))) < 11
    with pytest.raises(BadInput, match="build it first"):
        TeacherCache(folder)
    assert run_forked(module, str(folder), processes=3) == 0
    whole = teacher_and_student()[0]
    build_cache(whole, "t", rows(COUNT), cache_processes.SETTINGS, tmp_path / "one")
    assert files(folder) == files(tmp_path / "one")
    assert len(TeacherCache(folder)) == COUNT


def test_a_build_that_died_before_its_record_restarts(teacher: Any, tmp_path: Path) -> None:
    settings = CacheSettings(size=4)
    build_cache(teacher, "t", DATA, settings, tmp_path / "whole")
    (tmp_path / "parts" / "part-00000").mkdir(parents=True)
    (tmp_path / "parts" / "part-00000" / "ids.bin").write_bytes(b"half")
    build_cache(teacher, "t", DATA, settings, tmp_path / "parts")
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_a_complete_cache_needs_no_teacher(teacher: Any, tmp_path: Path) -> None:
    settings = CacheSettings(size=4)
    build_cache(teacher, "t", DATA, settings, tmp_path)
    only_the_vocabulary: Any = SimpleNamespace(config=teacher.config)
    again = build_cache(only_the_vocabulary, "t", DATA, settings, tmp_path)
    assert again.settings == settings


@pytest.mark.parametrize(
    "change",
    [
        {"name": "another"},
        {"data": rows(11)},
        {"data": rows(10, length=12)},
        {"settings": CacheSettings("sampled", 5)},
        {"settings": CacheSettings("top-k", 4)},
        {"settings": CacheSettings("sampled", 4, seed=1)},
        {"teacher": tiny_model("llama", vocab_size=256)},
    ],
    ids=["teacher", "rows", "length", "size", "kind", "seed", "vocabulary"],
)
def test_the_cache_of_something_else(teacher: Any, tmp_path: Path, change: dict[str, Any]) -> None:
    given = {"teacher": teacher, "name": "t", "data": DATA, "settings": CacheSettings(size=4)}
    build_cache(**given, folder=tmp_path)
    before = files(tmp_path)
    with pytest.raises(BadInput, match="holds a cache of another teacher, data or kind; choose"):
        build_cache(**given | change, folder=tmp_path)
    assert files(tmp_path) == before


def test_disk_full(teacher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = cache_bytes(DATA, 128, CacheSettings(size=4))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    folder = tmp_path / "new" / "cache"
    with pytest.raises(
        DoesNotFit, match=rf"cache needs .* MB, {tmp_path} has .* MB free; store fewer tokens"
    ):
        build_cache(teacher, "t", DATA, CacheSettings(size=4), folder)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    build_cache(teacher, "t", DATA, CacheSettings(size=4), folder)


def test_more_tokens_than_there_are(teacher: Any, tmp_path: Path) -> None:
    message = "a cache of 129 tokens per position: expected at least 1, .* at most the vocabulary's"
    with pytest.raises(BadInput, match=message):
        build_cache(teacher, "t", DATA, CacheSettings("top-k", 129), tmp_path / "cache")
    with pytest.raises(BadInput, match="a cache of 0 tokens per position"):
        build_cache(teacher, "t", DATA, CacheSettings("sampled", 0), tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []
    build_cache(teacher, "t", DATA, CacheSettings("sampled", 129), tmp_path / "cache")


@pytest.mark.parametrize("name", ["ids.bin", "probabilities.bin"])
def test_damaged_files(teacher: Any, tmp_path: Path, name: str) -> None:
    settings = CacheSettings("top-k", 4)
    build_cache(teacher, "t", DATA, settings, tmp_path)
    path = tmp_path / "part-00001" / name
    path.write_bytes(path.read_bytes()[:-1])
    message = rf"{name} is missing or damaged; remove the folder and build the cache again"
    with pytest.raises(BadInput, match=message):
        TeacherCache(tmp_path)
    with pytest.raises(BadInput, match=message):
        build_cache(teacher, "t", DATA, settings, tmp_path)
    path.unlink()
    with pytest.raises(BadInput, match=message):
        TeacherCache(tmp_path)


def test_damaged_record(teacher: Any, tmp_path: Path) -> None:
    build_cache(teacher, "t", DATA, CacheSettings(size=4), tmp_path)
    record = tmp_path / "cache.json"
    record.write_bytes(record.read_bytes()[:-5])
    with pytest.raises(BadInput, match=r"cache\.json is damaged \(.*\); remove the folder"):
        TeacherCache(tmp_path)
    record.unlink()
    with pytest.raises(BadInput, match="does not hold a complete teacher cache; build it first"):
        TeacherCache(tmp_path)


def batches_of(data: PackedTokens) -> Iterator[tuple[list[int], torch.Tensor]]:
    for start in range(0, len(data), 5):
        indices = list(range(start, start + 5))
        yield indices, data.batch(indices)


@pytest.mark.parametrize("family", ["llama", "granite", "gemma2"])
def test_the_whole_vocabulary_is_a_live_teacher(family: str, tmp_path: Path) -> None:
    """With all tokens kept there is no tail, and loss and gradient are those of live logits."""
    teacher, student = teacher_and_student(family)
    cache = build_cache(teacher, "t", DATA, CacheSettings("top-k", 128), tmp_path)
    live, cached = Distiller(student, teacher, Objective()), Distiller(student, None, Objective())
    for indices, tokens in batches_of(DATA):
        found = []
        for losses in (live(tokens), cached(tokens, cache.rows(indices, CPU))):
            student.zero_grad()
            losses.total.backward()
            found.append((losses.divergence, student.model.layers[0].mlp.up_proj.weight.grad))
        torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-3)
        largest = float(found[0][1].abs().max())
        torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=1e-2 * largest)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_learns_from_the_cache(kind: Literal["top-k", "sampled"], tmp_path: Path) -> None:
    teacher, student = teacher_and_student()
    data, held_out = rows(320), rows(seed=1).batch(range(8))
    cache = build_cache(teacher, "t", data, CacheSettings(kind, 32), tmp_path / "cache")
    before = held_out_divergence(student, teacher, held_out)
    settings = msgspec.structs.replace(
        SETTINGS, tokens=80 * 4 * 16, learning_rate=1e-3, checkpoint_steps=80
    )
    steps = list(distill(student, cache, data, settings, tmp_path / "run"))
    assert steps[-1].step == 80
    assert held_out_divergence(student, teacher, held_out) < 0.8 * before
