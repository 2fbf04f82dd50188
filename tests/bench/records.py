"""Hand-made samples with round figures, and the report that follows from them."""

from pathlib import Path

import msgspec

from edgelm.bench.machine import Machine
from edgelm.bench.measure import Samples
from edgelm.bench.peers.engines import MeasuredEngine, SkippedEngine
from edgelm.bench.report.records import Report
from edgelm.bench.report.report import make_report
from edgelm.bench.workload import Test as Job
from edgelm.bundle import Manifest
from edgelm.bundle.records.gates import Figures
from edgelm.devices.detection.machine import Unread
from edgelm.devices.sensors import Part, Reader, Sampler

PP, TG, DEEP = Job("pp", 100), Job("tg", 4), Job("tg", 4, 50)
MACHINE = Machine(
    cpu="Test CPU",
    cores=4,
    threads=2,
    memory_bytes=8 * 2**30,
    system="Linux 6 x86_64",
    python="3.11.7",
    read_gb_s=10.0,
)
WITH_GPU = msgspec.structs.replace(MACHINE, gpu="Test GPU", gpu_gb_s=100.0)
FIGURES = Figures(kl=0.0123, top1=0.956, perplexity_ratio=1.01, perplexity=20.0, tokens=2048)


def samples(name: str, *, figures: Figures | None = FIGURES, slower: float = 1.0) -> Samples:
    """Prefill of 100 tokens in 50, 100, 200 ms; steps of 10 and 20 ms; a weight of 1 MB."""
    loaded = {
        "weight_bytes": 1_000_000,
        "kv": "fp32",
        "kv_bytes": 154_000,
        "context": 154,
        "version": "1.2",
        "options": "threads 2",
        "rss_before": 20_000_000,
        "rss_after": 30_000_000,
    }
    if name.startswith("edgelm"):
        loaded |= {"hash_ms": 3.0, "tokenizer_ms": 4.0}
    return Samples(
        engine=MeasuredEngine(name, "module", None, lambda: Path()),
        loaded=loaded,
        load_ms=[10.0, 30.0, 20.0],
        figures=figures,
        memory={"peak_rss_bytes": 50_000_000, "rss_bytes": 40_000_000},
        prefill_ms={PP: [50.0 * slower, 100.0 * slower, 200.0 * slower]},
        ttft_ms={TG: [1.0, 2.0, 3.0], DEEP: [40.0, 60.0, 50.0]},
        steps_ms={
            TG: [[10.0 * slower] * 4, [20.0 * slower] * 4, [10.0 * slower] * 4],
            DEEP: [[20.0 * slower] * 4, [20.0 * slower] * 4, [20.0 * slower] * 4],
        },
    )


def on_gpu(name: str, gpu_bytes: int | None = 70_000_000) -> Samples:
    """The same of an engine that computes on a GPU; NVML may not tell its memory."""
    made = timed(name)
    made.loaded["device"] = "gpu"
    if gpu_bytes is not None:
        made.memory["gpu_bytes"] = gpu_bytes
    return made


def timed(name: str) -> Samples:
    """Steps of one and two seconds, and when each round of TG and PP ran: 0 to 19 and 20 to 45."""
    made = samples(name, slower=100.0)
    # a second of filling, then four steps
    made.windows[TG] = [(0.0, 5.0), (5.0, 14.0), (14.0, 19.0)]
    made.windows[PP] = [(20.0, 25.0), (25.0, 35.0), (35.0, 45.0)]
    return made


def watched(
    watts: float = 10.0, *, part: Part = "board", throttled: tuple[float, float] = (-2.0, -1.0)
) -> Sampler:
    """Sensors that were read five times a second for 50 s."""
    now = 0.0
    sampler = Sampler(
        [
            Reader("VDD_IN", "power", "W", "hwmon1", lambda: watts, part),
            Reader("tj <thermal>", "temperature", "°C", "zone0", lambda: 40.0 + now),
            Reader(
                "cpu-throttle-alert",
                "throttle",
                "state",
                "cooling_device0",
                lambda: float(throttled[0] <= now < throttled[1]),
            ),
        ],
        [Unread("GPU", "NVML", "no <driver>")],
        clock=lambda: now,
    )
    for number in range(251):
        now = number / 5
        sampler.sample()
    return sampler


def report(
    manifest: Manifest,
    *others: Samples,
    absent: tuple[SkippedEngine, ...] = (),
    ours: Samples | None = None,
    sensors: Sampler | None = None,
    machine: Machine = MACHINE,
) -> Report:
    """A report of us and of others, on a machine that reads 10 GB/s."""
    return make_report(
        [ours or samples("edgelm int8 tiny"), *others],
        list(absent),
        manifest=manifest,
        machine=machine,
        command="edge-bench tiny",
        rounds=3,
        quality_text="gate.jsonl",
        sensors=sensors,
    )
