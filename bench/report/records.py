"""What `report.json` holds.

`results` has one entry for each engine and test. The schema version rises when a field changes
its meaning; readers should ignore fields that they do not know.
"""

import msgspec

from edgelm.bench.machine import Machine
from edgelm.bench.report.statistics import Percentiles
from edgelm.bundle.records.gates import GateResult
from edgelm.devices.sensors import SensorLog
from edgelm.planning import Estimate

REPORT_VERSION = 1


class Latency(msgspec.Struct, frozen=True):
    """Percentiles in milliseconds."""

    p50: float
    p90: float
    p99: float


class Memory(msgspec.Struct, frozen=True):
    """Resident memory of the engine's process, in bytes.

    `base` before the model was loaded, `loaded` after; `peak` over all tests; `kv` is the cache
    as allocated, of which untouched pages are not resident. `gpu` is what the process held of a
    GPU's own memory after all tests.
    """

    base: int
    loaded: int
    peak: int
    kv: int
    gpu: int | None = None


class Result(msgspec.Struct, frozen=True):
    """One engine on one test.

    tokens_per_second: prompt tokens (pp) or generated tokens (tg) per second.
    ttft_ms: median time until the prompt's last logits; for tg, of a prompt as long as the depth.
    itl_ms: inter-token latency over all steps of all rounds (tg only).
    bound_share: share of the memory-bandwidth bound that decoding reaches (tg only).
    load_ms: median until the model could run, without hashing and tokenizer where separable.
    joules_per_token: energy of the report's `energy_sensors` while tokens were generated, idle
        draw included (tg only); None where no sensor covers it.
    throttled: whether the machine slowed itself down during a round of this test.
    device: `cpu` or `gpu`, where the engine computes.
    """

    engine: str
    test: str
    tokens_per_second: Percentiles
    ttft_ms: float
    itl_ms: Latency | None
    bound_share: float | None
    peak_rss_bytes: int
    memory: Memory
    load_ms: float
    load_samples_ms: tuple[float, ...]
    hash_ms: float | None
    tokenizer_ms: float | None
    weight_bytes: int
    bits_per_weight: float
    kl: float | None
    top1: float | None
    perplexity_ratio: float | None
    kv: str
    context: int
    options: str
    engine_version: str
    joules_per_token: float | None = None
    throttled: bool = False
    device: str = "cpu"


class Expectation(msgspec.Struct, frozen=True):
    """What the planner predicts for the first bundle on the target that it was exported for.

    `first_token_ms` is of a prompt of `prompt` tokens, `tokens_per_second` of decoding after
    `depth` tokens. `bandwidth_gb_s` is the target's memory bandwidth, `binds` what a token waits
    for most, `basis` where the speeds come from.
    """

    prompt: int
    first_token_ms: Estimate
    depth: int
    tokens_per_second: Estimate
    memory_bytes: int
    bandwidth_gb_s: float
    binds: str
    basis: str


class Report(msgspec.Struct, frozen=True):
    """Everything of one run.

    `throttled` says that a test was hit by throttling: the run is invalid. `sensors` saw all
    rounds, the warm-up too. `target`, `gate` and `expected` are of the first bundle; the latter two
    are None where the gate was off, or where the bundle could not be measured or planned.
    """

    schema_version: int
    edgelm_version: str
    created: str
    command: str
    machine: Machine
    source: str
    source_sha256: str
    parameters: int
    quality_text: str
    quality_tokens: int
    rounds: int
    results: tuple[Result, ...]
    absent: tuple[tuple[str, str], ...]
    throttled: bool = False
    sensors: SensorLog | None = None
    energy_sensors: tuple[str, ...] = ()
    target: str = ""
    gate: GateResult | None = None
    expected: Expectation | None = None
