"""Export from Python, and handle a result that is not good enough.

Needs `pip install 'edgelm[cpu,export]'`, or the environment that `make setup` creates:

    python examples/export_model.py HuggingFaceTB/SmolLM2-135M-Instruct my-bundle int8
"""

import sys

import edgelm
from edgelm.errors import GateFailed


def main(source: str, output: str, precision: str) -> int:
    """Export at a precision; 1 if the result is too far from its source."""
    try:
        manifest = edgelm.export_model(
            source,
            output,
            target="cpu",
            precision=precision,
            progress=lambda line: print(line, file=sys.stderr),
        )
    except GateFailed as error:  # nothing was written
        print(error)
        return 1
    assert manifest.gate is not None
    figures = manifest.gate.figures
    print(f"{output}: {manifest.weight_bytes / 1e6:.1f} MB of weights, KL {figures.kl:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
