"""Kill commands at random moments: `python -m tests.faults --kills 100`."""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from tests.faults.cases import CASES
from tests.faults.kills import kill_often


def main() -> int:
    """Run all cases, or some; 1 if one fails."""
    parser = argparse.ArgumentParser(prog="tests.faults")
    parser.add_argument("cases", nargs="*", help=", ".join(case.name for case in CASES))
    parser.add_argument("--kills", type=int, default=20, help="of each case (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    failed = 0
    for case in CASES:
        if options.cases and case.name not in options.cases:
            continue
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                kill_often(case, Path(folder), options.kills, options.seed)
                verdict = "good"
            except Exception as error:
                failed, verdict = 1, f"FAILED: {error}"
        print(f"{case.name}: {options.kills} kills in {time.monotonic() - begun:.0f} s: {verdict}")
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
