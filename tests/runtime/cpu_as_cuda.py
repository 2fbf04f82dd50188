"""The engine for ONNX Runtime's CUDA provider with the CPU in the GPU's place."""

from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from edgelm.runtime.engines import cuda
from edgelm.runtime.engines.onnxruntime.cuda import gpu_pool, provider
from tests.runtime.fake_gpu import FakeCuda


def use_fake_driver(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A GPU of our own. ONNX Runtime's memory is not its, and so is not checked."""
    fake = FakeCuda()
    fake.within = lambda address, size: True  # type: ignore[method-assign]
    monkeypatch.setattr(cuda, "_binding", lambda: fake)
    return fake


def use_cpu_as_cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Let OrtCudaEngine run graphs on the CPU provider, with "GPU memory" of this process."""
    monkeypatch.setattr(gpu_pool, "DEVICE", "cpu")
    monkeypatch.setattr(provider, "check_onnxruntime", lambda gpu: None)
    monkeypatch.setattr(provider, "load_graph", _load_on_cpu)
    return use_fake_driver(monkeypatch)


def _load_on_cpu(path: Path) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
