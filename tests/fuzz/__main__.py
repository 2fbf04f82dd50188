"""`python -m tests.fuzz`: one case again, or a campaign."""

import argparse
from pathlib import Path

from tests.fuzz.campaign import campaign
from tests.fuzz.kinds import KINDS
from tests.fuzz.session import SAVED, prepared, run


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    add = parser.add_argument
    add("--kind", choices=list(KINDS), help="run cases of this kind and print them")
    add("--seed", type=int, default=1, help="of the mutations (default: 1)")
    add("--case", type=int, help="only this one; else --cases")
    add("--campaign", action="store_true", help="run all kinds and write a summary")
    add("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    add("--cases", type=int, default=500, help="of each kind (default: 500)")
    add("--jobs", type=int, default=2, help="cases at a time (default: 2)")
    add("-o", "--output", type=Path, help="file for the summary, Markdown")
    return parser


def main() -> int:
    """Exit code 1 where a case failed."""
    options = parser().parse_args()
    if options.campaign:
        return campaign(
            options.kinds, options.seed, options.cases, jobs=options.jobs, output=options.output
        )
    if not options.kind:
        parser().error("give --kind or --campaign")
    cases = range(options.cases) if options.case is None else [options.case]
    failed = 0
    with prepared(KINDS[options.kind]) as kind:
        for outcome in run(kind, options.seed, cases, jobs=options.jobs):
            failed += outcome.failed
            if outcome.failed or options.case is not None:
                print(f"{outcome.case}: {outcome} {outcome.seconds:.2f} s")
    print(f"{len(cases)} cases, {failed} failed" + (f"; files in {SAVED}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
