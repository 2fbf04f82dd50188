"""The command-line reference, from the parsers themselves (`make docs`)."""

import argparse
import os

from edgelm.bench.cli import parser as bench
from edgelm.bench.evaluation.cli import parser as evaluate
from edgelm.compress.cli import parser as compress
from edgelm.devices.cli import parser as devices
from edgelm.export.cli import parser as export
from edgelm.runtime.cli import parser as run
from edgelm.runtime.server.cli import parser as serve


def reference() -> str:
    """Markdown with the help of every command."""
    os.environ["COLUMNS"] = "100"
    parts = ["# Command line\n\nWritten from `--help` by `make docs`.\n"]
    parsers: list[argparse.ArgumentParser] = [
        compress(),
        export(),
        run(),
        serve(),
        bench(),
        evaluate(),
        devices(),
    ]
    for one in parsers:
        parts.append(f"## {one.prog}\n\n```\n{one.format_help()}```\n")
        parts += [f"### {verb.prog}\n\n```\n{verb.format_help()}```\n" for verb in _verbs(one)]
    return "\n".join(parts)


def _verbs(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parsers of its subcommands."""
    return [
        verb
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for verb in action.choices.values()
    ]


if __name__ == "__main__":
    print(reference(), end="")
