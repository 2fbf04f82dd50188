"""Read the quality figures from a bundle's manifest, for example to refuse a bundle in deployment.

Run it with the bundle that `make demo` exports; it loads no model:

    python examples/gate_figures.py build/demo/bundle
"""

import sys
from pathlib import Path

from edgelm.bundle import read_manifest


def main(bundle: str) -> int:
    """Print the figures with their limits; 1 if the bundle did not pass."""
    gate = read_manifest(Path(bundle)).gate
    if gate is None:
        print("the manifest has no quality figures")
        return 1
    figures, limit = gate.figures, gate.threshold
    print(f"{gate.gate_class} class, {figures.tokens:,} tokens of {gate.text}")
    print(f"KL divergence    {figures.kl:.4f} (at most {limit.max_kl:.6g})")
    print(f"top-1 agreement  {figures.top1:.1%} (at least {limit.min_top1:.0%})")
    most = f"{limit.max_perplexity_ratio:.6g}"
    print(f"perplexity       ×{figures.perplexity_ratio:.3f} (at most ×{most})")
    print("passed" if gate.passed else "not passed")
    return 0 if gate.passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
