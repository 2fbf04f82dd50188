"""What passes between a model and its draft head, at the edges of their graphs, in fp32.

A model's graph is cut into three: its embedding gives rows [1, T, H], the layers give the hidden
states of all tokens, [1, T, H] behind the final norm, and the output matrix reads the selected ones
of them, [1, P, H]. A draft head is a graph for the place of the layers: it reads rows of the
embedding and hidden states, and gives its own for the output matrix, so that it shares both tables.
An assistant has an output matrix of its own, and gives both logits and hidden states.
"""

from collections.abc import Sequence

import msgspec
import onnx_ir as ir

from edgelm.bundle import GraphContract, TensorContract
from edgelm.bundle.roles import EMBEDDED, HIDDEN, SELECTED
from edgelm.export.graph.builder import Graph
from edgelm.spec.decoder import DecoderSpec

Value = ir.Value
_FLOAT = ir.DataType.FLOAT
_GIVEN = "given_hidden"


class HiddenStates:
    """Declares them.

    Args:
        graph: the graph, whose activations are fp32.
        spec: the decoder, the draft head or the assistant.
    """

    def __init__(self, graph: Graph, spec: DecoderSpec) -> None:
        self.graph = graph
        self.is_head, self.is_assistant = spec.draft_head, spec.assistant is not None
        width = spec.hidden_size if spec.assistant is None else spec.assistant.model_size
        self._all = (1, "T", width)
        self._selected = (1, "P", width)

    def behind_embedding(self, rows: Value) -> Value:
        """Cut a model's graph behind its embedding."""
        return self.graph.boundary(rows, EMBEDDED, _FLOAT, self._all)

    def behind_layers(self, hidden: Value) -> Value:
        """Cut a model's graph in front of its output matrix, of selected rows."""
        return self.graph.boundary(hidden, SELECTED, _FLOAT, self._selected)

    def give(self, hidden: Value) -> None:
        """Declare hidden states an output: of all tokens, or of selected ones of what drafts."""
        name, shape = (SELECTED, self._selected) if self.is_head else (HIDDEN, self._all)
        if self.is_assistant:
            shape = self._selected
        self.graph.output(hidden, name, _FLOAT, shape)

    def read(self) -> tuple[Value, Value]:
        """Declare rows of the embedding and the model's hidden states inputs: [1, T, H]."""
        return self.graph.input(EMBEDDED, _FLOAT, self._all), self.graph.input(
            _GIVEN, _FLOAT, self._all
        )

    def concatenate(self, x: Value, y: Value) -> Value:
        """`[x, y]` along the last axis."""
        return self.graph.op("Concat", x, y, axis=-1)  # type: ignore[no-any-return]

    def described(
        self, contract: GraphContract, borrowed: Sequence[TensorContract]
    ) -> GraphContract:
        """The contract with these inputs and outputs, and those of the cache that it borrows."""
        if not (self.is_head or self.is_assistant):
            hidden = TensorContract(HIDDEN, "float32", self._all)
            return msgspec.structs.replace(contract, outputs=contract.outputs | {HIDDEN: hidden})
        read = {
            EMBEDDED: TensorContract(EMBEDDED, "float32", self._all),
            HIDDEN: TensorContract(_GIVEN, "float32", self._all),
        }
        if self.is_assistant:
            read |= {one.name: one for one in borrowed}
            own = contract.outputs | {HIDDEN: TensorContract(HIDDEN, "float32", self._selected)}
            return msgspec.structs.replace(contract, inputs=contract.inputs | read, outputs=own)
        given = {HIDDEN: TensorContract(SELECTED, "float32", self._selected)}
        return msgspec.structs.replace(contract, inputs=contract.inputs | read, outputs=given)
