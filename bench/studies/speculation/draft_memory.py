"""What a draft model adds to a bundle's memory, beside what the planner counts (Linux).

    python -m bench.studies.speculation.draft_memory BUNDLE [--context 2048]

Each case loads the bundle in a process of its own and runs a prompt and 32 tokens that together
nearly fill `--context` tokens of the cache. In MB of 2**20 bytes. Without a draft model only the
bundle alone is measured.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from edgelm.bundle import DRAFT, read_manifest
from edgelm.devices.planner.memory.memory_need import draft_bytes, loaded_bytes
from edgelm.runtime import load

_ROOM, _TOKENS = 64, 32


def peak(bundle: Path, context: int, *, draft: bool) -> float:
    """Peak resident memory of this process, in MB, after nearly `context` tokens."""
    with load(bundle, speculation="draft" if draft else "off") as lm:
        words = " ".join(f"word {number} is here" for number in range(context // 4))
        prompt = [int(token) for token in lm.tokenizer.encode(words)[: context - _ROOM]]
        lm.generate(prompt, max_tokens=_TOKENS, temperature=0)
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--case", choices=("off", "draft"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    bundle, context = arguments.bundle, arguments.context
    if arguments.case:
        print(f"{peak(bundle, context, draft=arguments.case == 'draft'):.0f}")
        return
    manifest = read_manifest(bundle)
    own = loaded_bytes(manifest, context)
    cases = {"off": own}
    if (bundle / DRAFT).exists():
        cases["draft"] = own + draft_bytes(read_manifest(bundle / DRAFT), manifest, context)
    for case, planned in cases.items():
        words = [sys.executable, "-m", "bench.studies.speculation.draft_memory", str(bundle)]
        words += ["--context", str(context), "--case", case]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        measured, counted = float(done.stdout), planned / 2**20
        print(
            f"{case}: {measured:.0f} MB measured, {counted:.0f} MB planned "
            f"({counted / measured - 1:+.1%})"
        )


if __name__ == "__main__":
    main()
