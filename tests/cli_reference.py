"""The command-line reference, from the parsers themselves: `make docs` writes docs/cli.md."""

import argparse
import os

from edgelm.bench.cli import parser as bench
from edgelm.export.cli import parser as export
from edgelm.runtime.cli import parser as run


def reference() -> str:
    """Markdown with the help of every command."""
    os.environ["COLUMNS"] = "100"
    parts = ["# Command line\n\nWritten from `--help` by `make docs`.\n"]
    parsers: list[argparse.ArgumentParser] = [export(), run(), bench()]
    parts += [f"## {one.prog}\n\n```\n{one.format_help()}```\n" for one in parsers]
    return "\n".join(parts)


if __name__ == "__main__":
    print(reference(), end="")
