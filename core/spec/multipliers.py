"""The constants that Falcon-H1 multiplies the inputs and outputs of its matrices by."""

import msgspec


class Multipliers(msgspec.Struct, frozen=True):
    """One set for all layers; `mamba` is of the rows of z, x, B, C and dt."""

    attention_in: float = 1.0
    key: float = 1.0
    attention_out: float = 1.0
    mamba_in: float = 1.0
    mamba: tuple[float, float, float, float, float] = (1.0, 1.0, 1.0, 1.0, 1.0)
    mamba_out: float = 1.0
    gate: float = 1.0
    down: float = 1.0

    def of_inputs(self, part: str) -> float:
        """What the inputs of a part of a layer, e.g. `attention.qkv`, are multiplied by."""
        factors = {"attention.qkv": self.attention_in, "mamba.in": self.mamba_in}
        return factors.get(part, 1.0)

    def of_outputs(self, part: str) -> tuple[float, ...]:
        """What its outputs are, bias included; one for each section of rows."""
        factors: dict[str, tuple[float, ...]] = {
            "attention.qkv": (1.0, self.key, 1.0),
            "attention.o": (self.attention_out,),
            "mamba.in": self.mamba,
            "mamba.out": (self.mamba_out,),
            "mlp.gate_up": (self.gate, 1.0),
            "mlp.down": (self.down,),
        }
        return factors.get(part, (1.0,))
