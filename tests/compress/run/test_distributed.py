"""Which of several processes this one is, by the launcher's environment."""

import pytest
import torch

from edgelm.compress.run.distributed import device, is_main_process, world_size


def test_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert is_main_process()
    assert world_size() == 1


@pytest.mark.parametrize(("rank", "first"), [("0", True), ("1", False), ("10", False)])
def test_under_a_launcher(monkeypatch: pytest.MonkeyPatch, rank: str, first: bool) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert is_main_process() == first
    assert world_size() == 16


def test_every_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert device() == torch.device("cuda:3")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert device() == torch.device("cpu")
