"""Kill commands at random moments: `python -m tests.faults --kills 100`."""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from tests.faults.cases import CASES
from tests.faults.kills import kill_often
from tests.short_texts import short_gate


def main() -> int:
    """Run all cases, or some; 1 if one fails."""
    parser = argparse.ArgumentParser(prog="tests.faults")
    names = ", ".join(case.name for case in CASES)
    parser.add_argument("cases", nargs="*", help=f"NAME or NAME=KILLS, of {names}")
    parser.add_argument("--kills", type=int, default=20, help="of each case (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="a file for the outcomes too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    asked = dict(one.partition("=")[::2] for one in options.cases)
    if unknown := asked.keys() - {case.name for case in CASES}:
        parser.error(f"no such case: {', '.join(sorted(unknown))}; expected some of {names}")
    failed = 0
    for case in CASES:
        if asked and case.name not in asked:
            continue
        kills = int(asked.get(case.name) or options.kills)
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder, short_gate():
            try:
                tally = kill_often(case, Path(folder), kills, options.seed)
                verdict = (
                    f"good; {tally.killed} died, output old {tally.old}, new {tally.new}; "
                    f"{tally.ended} runs ended before their kill"
                )
            except Exception as error:
                failed, verdict = 1, f"FAILED: {error}"
        outcome = f"{case.name}: {kills} kills in {time.monotonic() - begun:.0f} s: {verdict}"
        print(outcome, flush=True)
        if options.output:
            with options.output.open("a") as file:
                file.write(f"{outcome}\n")
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
