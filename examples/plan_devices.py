"""Plan a model for several devices: memory and speed, estimated from its configuration alone.

No weights are read, and none of the devices is needed:

    python examples/plan_devices.py HuggingFaceTB/SmolLM2-135M-Instruct int4 \
        jetson-orin-nano laptop-rtx-4060 cpu
"""

import sys

import edgelm
from edgelm.checkpoint.source import read_spec
from edgelm.devices.profile import load_profile
from edgelm.planning import PlanRequest


def main(model: str, precision: str, devices: list[str]) -> None:
    """Print one line per device."""
    spec = read_spec(model)
    print(f"{'device':<30} {'memory':>9} {'first token':>12} {'tokens/s (80% range)':>24}")
    for device in devices:
        plan = edgelm.plan(spec, load_profile(device), PlanRequest(precision))
        rate = plan.tokens_per_second
        speed = f"{rate.value:.0f} ({rate.low:.0f} to {rate.high:.0f})"
        memory, first = f"{plan.total_bytes / 1e9:.2f} GB", f"{plan.prefill_ms.value:.0f} ms"
        fits = "" if plan.fits else "  does not fit"
        print(f"{plan.target:<30} {memory:>9} {first:>12} {speed:>24}{fits}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
