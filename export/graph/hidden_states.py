"""Hidden states behind the final norm, which pass from a model to its draft head.

A model gives those of all tokens of a run, [1, T, H]. A draft head reads them, and gives its own
for the rows whose logits are requested, [1, P, H], which it reads again for the next token.
"""

import msgspec
import onnx_ir as ir

from edgelm.bundle import GraphContract, TensorContract
from edgelm.bundle.roles import HIDDEN
from edgelm.export.graph.builder import Graph
from edgelm.export.graph.dtypes import DTYPES, Activations
from edgelm.spec.decoder import DecoderSpec

Value = ir.Value
_FLOAT = ir.DataType.FLOAT
_GIVEN = "given_hidden"


class HiddenStates:
    """Declares hidden states as inputs and outputs of a graph, fp32.

    Args:
        graph: the graph.
        spec: the decoder or draft head.
        activations: type of the residual stream.
    """

    def __init__(self, graph: Graph, spec: DecoderSpec, activations: Activations) -> None:
        self.graph = graph
        self.activations = activations
        self.is_head = spec.draft_head
        self._shape = (1, "P" if spec.draft_head else "T", spec.hidden_size)
        self._read_shape = (1, "T", spec.hidden_size)

    def read(self) -> Value:
        """Declare the model's hidden state behind each token an input: [1, T, H]."""
        given = self.graph.input(_GIVEN, _FLOAT, self._read_shape)
        return self._cast(given, DTYPES[self.activations])

    def concatenate(self, x: Value, y: Value) -> Value:
        """`[x, y]` along the last axis."""
        return self.graph.op("Concat", x, y, axis=-1)  # type: ignore[no-any-return]

    def give(self, hidden: Value) -> None:
        """Declare what the final norm gives an output."""
        self.graph.output(self._cast(hidden, _FLOAT), HIDDEN, _FLOAT, self._shape)

    def described(self, contract: GraphContract) -> GraphContract:
        """The contract with these inputs and outputs."""
        outputs = {HIDDEN: TensorContract(HIDDEN, "float32", self._shape)}
        inputs = {HIDDEN: TensorContract(_GIVEN, "float32", self._read_shape)}
        return msgspec.structs.replace(
            contract,
            inputs=contract.inputs | (inputs if self.is_head else {}),
            outputs=contract.outputs | outputs,
        )

    def _cast(self, x: Value, dtype: ir.DataType) -> Value:
        if self.activations == "fp32":
            return x
        return self.graph.op("Cast", x, to=dtype.value)  # type: ignore[no-any-return]
