"""The tables of a device profile: one record each."""

from typing import Literal

import msgspec

from edgelm.quantize.precision import KvType

Status = Literal["given", "derived", "measured", "assumed", "unverified"]
Form = Literal["cpu", "jetson", "laptop", "desktop", "desktop-unified", "datacenter"]


# Of the bandwidth by specification, what a kernel that only reads reaches on a Jetson Thor:
# 257 of 273 GB/s (infinigence/ApxInf#74).
_USUAL_SHARE = 0.94


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A number and its origin.

    value: the number, in the unit that the field names
    source: its key in `[sources]`
    status: see the table above
    """

    value: float
    source: str
    status: Status = "given"


class Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Total memory, and the part that the system, the desktop and the display use.

    kind: `shared` by CPU and GPU, `dedicated` to a GPU, or `host`: this machine, whose size is read
        when it is needed
    reserved_bytes: what firmware, system and desktop take
    bytes: total size; not for `host`
    """

    kind: Literal["shared", "dedicated", "host"]
    reserved_bytes: Figure
    bytes: Figure | None = None


class PowerMode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Speeds in one power mode; a device without modes has one, `default`.

    name: as the device calls it, e.g. `15W`
    bandwidth_gb_s: memory bandwidth, in 10⁹ bytes per second
    dense_tflops: peak rates of dense matrix products (no sparsity) by arithmetic type, on a GPU
        with 16-bit or wider accumulation
    clock_ghz: the GPU's clock
    sm_count: multiprocessors in use
    watts: power limit
    measured_gb_s: bandwidth that a kernel that only reads was measured to reach, where that is
        less than usual
    """

    name: str
    bandwidth_gb_s: Figure
    dense_tflops: dict[str, Figure]
    clock_ghz: Figure | None = None
    sm_count: Figure | None = None
    watts: Figure | None = None
    measured_gb_s: Figure | None = None

    @property
    def attainable_gb_s(self) -> float:
        """The bandwidth of which engines reach their usual share.

        It is the bandwidth itself, unless not even a kernel that only reads reaches the usual
        share of it: the GPU of a GB10 reads memory through a link to the CPU's die.
        """
        if self.measured_gb_s is None:
            return self.bandwidth_gb_s.value
        return min(self.bandwidth_gb_s.value, self.measured_gb_s.value / _USUAL_SHARE)


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Coefficients of the cost model measured on the device itself with this engine.

    bandwidth: share of the read bandwidth for weights, by precision
    cache_bandwidth: the same for the cache, by its type
    compute: share of the dense peak that long prompts reach, by precision
    attention: the same for attention
    layer_us: overhead of a layer in a decoded token, in microseconds
    step_us: fixed time of a decoding step, in microseconds
    prompt_layers: ratio of a prompt's overhead per layer to that of a token
    band: relative error that 80% of cases do not exceed
    source: how it was measured
    """

    bandwidth: dict[str, float]
    cache_bandwidth: dict[str, float]
    compute: dict[str, float]
    attention: float
    layer_us: float
    step_us: float
    prompt_layers: float
    band: float
    source: str


class Engine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way to run a decoder on the device; the first of a profile is the default.

    name: e.g. `onnxruntime`, or `tensorrt-10.3` for a version
    dialect: of its graphs: `ort`, `standard` or `decomposed`
    precisions: of weights
    kv: types of the key-value cache, the default first
    runtime_bytes: memory that its libraries take in addition to weights, cache and workspace
    source: key in `[sources]` of its versions and precisions
    weight_copies: copies of the weights in memory at the peak; ONNX Runtime's on a CPU are counted
        as it packs them, whatever this says
    version: the version that the device has
    requires: packages that it needs, as text
    measured: coefficients of the cost model, if they were measured
    """

    name: str
    dialect: str
    precisions: tuple[str, ...]
    kv: tuple[KvType, ...]
    runtime_bytes: Figure
    source: str
    weight_copies: float = 1.0
    version: str = ""
    requires: str = ""
    measured: Measured | None = None
