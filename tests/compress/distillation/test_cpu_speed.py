"""Compiled layers compute the same, and only for the time being."""

import shutil
from functools import partialmethod
from typing import Any

import pytest
import torch
from torch import nn

from edgelm.compress.distillation.cpu_speed import compiled_layers, keep_freed_memory
from edgelm.compress.distillation.loss.objective import Objective
from edgelm.compress.distillation.student_teacher import Distiller
from edgelm.errors import MissingPackage
from tests.checkpoints.models import tiny_model
from tests.compress.training import rows

NO_COMPILER = (
    "compile = true needs a C\\+\\+ compiler on a CPU; install g\\+\\+, set CXX, or turn it off"
)
TOKENS = rows().batch(range(2))


def losses_and_gradients(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    losses = Distiller(model, None, Objective(cross_entropy=1.0))(TOKENS)
    losses.total.backward()
    gradients = {key: one.grad.clone() for key, one in model.named_parameters()}
    return float(losses.total.detach()), gradients


def compiled(model: Any) -> list[bool]:
    return [layer._compiled_call_impl is not None for layer in model.model.layers]


@pytest.mark.slow
def test_the_same_losses_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    # Traced and differentiated as by default, but without the half minute of g++.
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    model = tiny_model("llama", num_hidden_layers=2)
    loss, gradients = losses_and_gradients(model)
    compiled_before = graphs()
    with compiled_layers(model, None, on_cpu=True):
        assert compiled(model) == [True, True]
        compiled_loss, compiled_gradients = losses_and_gradients(model)
    assert graphs() == compiled_before + 1, "all layers are alike"
    assert compiled_loss == pytest.approx(loss, rel=1e-5)
    for key, gradient in gradients.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(compiled_gradients[key], gradient, rtol=0, atol=1e-4 * largest)
    assert compiled(model) == [False, False]
    assert losses_and_gradients(model)[0] == loss
    assert graphs() == compiled_before + 1


def graphs() -> int:
    """Graphs that torch.compile has compiled in this process."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


@pytest.fixture
def _no_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-in for torch.compile, which takes seconds."""

    def mark(self: nn.Module, **_: Any) -> None:
        self._compiled_call_impl = self._call_impl

    monkeypatch.setattr(nn.Module, "compile", mark)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")


@pytest.mark.usefixtures("_no_compilation")
def test_all_models_come_back_after_an_error() -> None:
    student, teacher = tiny_model("llama"), tiny_model("qwen3")
    interrupted = compiled_layers(student, teacher, on_cpu=True)
    interrupted.__enter__()
    assert compiled(student) == compiled(teacher) == [True] * 4
    error = KeyboardInterrupt()
    assert not interrupted.__exit__(KeyboardInterrupt, error, None)
    assert compiled(student) == compiled(teacher) == [False] * 4


@pytest.mark.usefixtures("_no_compilation")
def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    asked: list[str] = []
    monkeypatch.setattr(shutil, "which", asked.append)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(MissingPackage, match=NO_COMPILER), compiled_layers(model, on_cpu=True):
        pass
    monkeypatch.setenv("CXX", "clang++")
    with pytest.raises(MissingPackage, match=NO_COMPILER), compiled_layers(model, on_cpu=True):
        pass
    assert asked == ["g++", "clang++"]
    assert compiled(model) == [False] * 4
    with compiled_layers(model, on_cpu=False):  # a GPU has a compiler of its own
        assert compiled(model) == [True] * 4


def test_freed_memory_can_be_kept_twice() -> None:
    keep_freed_memory()
    keep_freed_memory()
    assert float(torch.ones(1 << 24).sum()) == 1 << 24  # 64 MB, which glibc would map again


@pytest.mark.parametrize("family", ["llama", "olmo2"])
def test_hidden_states_are_recorded_beside_compiled_layers(
    monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Hooks inside a compiled layer do not run; the layers that have some stay eager."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    student = tiny_model(family, num_hidden_layers=3)
    teacher = tiny_model(family)
    distiller = Distiller(student, teacher, Objective(), layer_map=((-1, -1), (0, 1), (2, 3)))
    with torch.no_grad():
        plain = float(distiller(TOKENS).hidden)
        eager = distiller.recorded_layers()
        with compiled_layers(student, teacher, on_cpu=True, eager=eager):
            assert any(compiled(student))
            assert any(compiled(teacher))
            for _ in range(2):
                assert float(distiller(TOKENS).hidden) == pytest.approx(plain, rel=1e-5)
