"""A run on ONNX Runtime's CUDA provider, all of whose inputs and outputs stay at one address."""

from typing import Any

import numpy as np
import numpy.typing as npt

from edgelm.bundle import GraphContract
from edgelm.errors import BadBundle, DoesNotFit
from edgelm.reasons import reason
from edgelm.runtime.engines.graph_check import output
from edgelm.runtime.engines.onnxruntime.cuda import gpu_pool
from edgelm.runtime.engines.onnxruntime.cuda.gpu_pool import GpuTensor, GpuTensors
from edgelm.runtime.engines.onnxruntime.cuda.provider import lacks_memory, onnxruntime
from edgelm.runtime.engines.step_inputs import StepInputs

# GroupQueryAttention reads it on the machine's side.
_ON_HOST = frozenset({"total_length"})
_CHANGED_PER_TOKEN = ("tokens", "positions", "past_length", "last_position")


class BoundStep:
    """A binding and what it binds: inputs and outputs of a fixed size, the cache, its new rows.

    Args:
        session: of the graph.
        graph: the graph, as the manifest has it.
        inputs: of the step, by role.
        cache: of its sequences.
        new: where the graph writes new rows: the cache, or memory of their own.
        logits: shape of the graph's output.
        graph_id: which CUDA graph records and replays the step; None: none.
    """

    def __init__(
        self,
        session: Any,
        graph: GraphContract,
        inputs: StepInputs,
        cache: GpuTensors,
        new: GpuTensors,
        *,
        logits: tuple[int, ...],
        graph_id: int | None = None,
    ) -> None:
        self.new = new
        self._session = session
        self._binding = session.io_binding()
        self._options = run_options("-1" if graph_id is None else str(graph_id))
        self._cache = cache  # whose memory lives as long as the binding
        self._inputs = {
            role: _value(inputs[role], on_host=role in _ON_HOST) for role in graph.inputs
        }
        for role, tensor in graph.inputs.items():
            self._binding.bind_ortvalue_input(tensor.name, self._inputs[role])
        self._logits = _value(np.zeros(logits, np.float32))
        self._binding.bind_ortvalue_output(output(graph).name, self._logits)
        for layer, past, present in zip(graph.cache.layers, cache, new, strict=True):
            self._bind_cache(self._binding.bind_input, layer.past_key, past[0])
            self._bind_cache(self._binding.bind_input, layer.past_value, past[1])
            self._bind_cache(self._binding.bind_output, layer.present_key, present[0])
            self._bind_cache(self._binding.bind_output, layer.present_value, present[1])

    def update(self, inputs: StepInputs) -> None:
        """Give what changes with each token its values, if the graph has it; addresses stay."""
        for role in _CHANGED_PER_TOKEN:
            if role in self._inputs:
                self._inputs[role].update_inplace(inputs[role])

    def run(self) -> npt.NDArray[np.float32]:
        """Run it; its logits are valid until the next run.

        Raises:
            DoesNotFit: the GPU has no memory for it.
            BadBundle: ONNX Runtime refuses the graph.
        """
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:  # the base of what ONNX Runtime raises
            if lacks_memory(error):
                raise DoesNotFit(
                    f"the GPU has not enough memory for this run: {reason(error)}"
                ) from None
            raise BadBundle(
                f"ONNX Runtime cannot run this bundle's graph with CUDA: {reason(error)}; check "
                "its files (edge-export --verify), then export it again"
            ) from None
        rows: npt.NDArray[np.float32] = self._logits.numpy()
        return rows

    def _bind_cache(self, bind: Any, name: str, tensor: GpuTensor) -> None:
        bind(name, gpu_pool.DEVICE, 0, tensor.dtype, list(tensor.shape), tensor.address)


def run_options(graph_id: str) -> Any:
    """Options of a run: which CUDA graph it is, -1 for none."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", graph_id)
    return options


def _value(array: Any, *, on_host: bool = False) -> Any:
    device = "cpu" if on_host else gpu_pool.DEVICE
    return onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0)
