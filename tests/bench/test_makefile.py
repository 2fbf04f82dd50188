"""The Makefile's targets, without running them."""

import subprocess

from tests.bench.conftest import ROOT


def make(*arguments: str) -> str:
    done = subprocess.run(
        ["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_make_alone_lists_the_targets() -> None:
    listed = {line.split()[1] for line in make().splitlines()}
    assert {"demo", "report", "test", "setup", "lint", "types", "check", "clean"} <= listed


def test_the_demo_compiles_nothing_and_keeps_the_quality_check() -> None:
    commands = make("--dry-run", "demo")
    assert "--setup-peers" not in commands
    assert "--gate" not in commands
    assert commands.index("edge-export") < commands.index("edge-run") < commands.index("edge-bench")


def test_the_report_measures_the_requested_peers() -> None:
    commands = make("--dry-run", "report", "PEERS=optimum", "ROUNDS=3")
    assert commands.count("--peers optimum") == 2
    assert "-r 3" in commands
