"""`edge-bench`: measure a bundle, and other engines if requested, and write the report."""

import argparse
import os
import shlex
import sys
from pathlib import Path

import msgspec

from edgelm.cli import positive_int, run_command
from edgelm.errors import BadInput
from edgelm.files.staging import check_output_folder
from edgelm.speculation import SPECULATION_MODES

_EPILOG = """\
Tests are named as in llama-bench: pp512 processes a prompt of 512 tokens, tg128@d4096 generates
128 tokens with 4,096 tokens in the cache. Peers are other engines that run the same model; they
are installed into environments of their own by edge-bench --setup-peers.

examples:
  edge-bench bundle/                                   the bundle alone
  edge-bench bundle/ --no-quality                      on a device without torch
  edge-bench bundle/ -d 0,512,4096 --peers llama.cpp   compared with llama.cpp

exit codes: 0 done, 2 bad input, 3 a bug in edgelm
"""
_PEERS = "llama.cpp, onnxruntime-genai, transformers, optimum, transformers-static"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="edge-bench",
        description="Measure speed, latency, memory and quality of a bundle.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "bundle",
        nargs="*",
        type=Path,
        help="bundles of one source model, or of a teacher and its students",
    )
    add("-p", "--prompt", default="512", metavar="N,..", help="prompt lengths (default: 512)")
    add(
        "-n",
        "--generate",
        default="128",
        metavar="N,..",
        help="how many tokens to generate (default: 128)",
    )
    add(
        "-d",
        "--depth",
        default="0,512",
        metavar="N,..",
        help="tokens in the cache before generation (default: 0,512)",
    )
    add("-r", "--rounds", type=positive_int, default=5, help="rounds after warm-up (default: 5)")
    add("--peers", default="", metavar="A,B", help=f"any of {_PEERS} (default: none)")
    add("--source", help="the model that the bundles were exported from, or the students' teacher")
    add(
        "--quality-text",
        type=Path,
        metavar="FILE",
        help="text for KL and top-1 (default: that of the gate)",
    )
    add("--no-quality", action="store_true", help="do not measure KL and top-1")
    add("--threads", type=positive_int, metavar="N", help="CPU threads (default: physical cores)")
    add("--cache", type=Path, metavar="DIR", help="folder for the peers' model files")
    add(
        "--out",
        type=Path,
        default=Path("report"),
        metavar="DIR",
        help="folder for the report (default: report/)",
    )
    add(
        "--speculation",
        choices=[mode for mode in SPECULATION_MODES if mode != "off"],
        metavar="MODE",
        help="instead of the tests, measure speed with and without speculation (auto, lookup, "
        "draft) on four kinds of tasks",
    )
    add("--work", metavar="A,B", help="only these kinds of tasks of --speculation (default: all)")
    add(
        "--check-plan",
        action="store_true",
        help="instead of the tests, measure how well the planner predicts ten random models",
    )
    add(
        "--setup-peers",
        action="store_true",
        help="first install the peers: those of --peers, or all",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point of `edge-bench`."""
    arguments = parser().parse_args(argv)
    given = sys.argv[1:] if argv is None else argv
    return run_command(lambda: _run(arguments, shlex.join(["edge-bench", *given])))


def _run(arguments: argparse.Namespace, command: str) -> None:
    _check_alone(arguments)
    if arguments.bundle or arguments.check_plan:
        check_output_folder(arguments.out, "--out")
    if arguments.setup_peers:
        _set_up_peers(_peer_names(arguments))
    if arguments.check_plan:
        _check_plan(arguments)
    elif arguments.speculation:
        _measure_speculation(arguments, command)
    elif arguments.bundle:
        _measure(arguments, command)
    elif not arguments.setup_peers:
        raise BadInput("give at least one bundle, or --setup-peers, or --check-plan")


def _check_alone(arguments: argparse.Namespace) -> None:
    """Raise BadInput for options of two measurements, of which only one would run."""
    if arguments.check_plan and (arguments.bundle or arguments.speculation):
        raise BadInput(
            "--check-plan measures layers of its own; leave out the bundle and --speculation"
        )
    if arguments.work and not arguments.speculation:
        raise BadInput("--work selects tasks of --speculation; add it, e.g. --speculation auto")
    if arguments.speculation and arguments.peers and not arguments.setup_peers:
        raise BadInput(
            "--speculation compares a bundle with itself; leave out --peers, or measure them in "
            "another command"
        )


def _set_up_peers(names: list[str]) -> None:
    from edgelm.bench.peers.engines import peer_environments
    from edgelm.bench.peers.install import ENVIRONMENTS, set_up

    set_up(peer_environments(names) if names else ENVIRONMENTS)


def _check_plan(arguments: argparse.Namespace) -> None:
    from edgelm.bench.machine import describe_machine
    from edgelm.bench.plan_check import check_plan, check_table
    from edgelm.devices.detection.threads import physical_cores
    from edgelm.devices.profile import load_profile

    threads = arguments.threads or physical_cores()
    check = check_plan(
        load_profile("cpu"),
        describe_machine(threads),
        rounds=arguments.rounds,
        threads=threads,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    (out / "plan_check.json").write_bytes(msgspec.json.format(msgspec.json.encode(check)))
    (out / "plan_check.md").write_text(check_table(check) + "\n")
    print(check_table(check))


def _measure_speculation(arguments: argparse.Namespace, command: str) -> None:
    from edgelm.bench.machine import describe_machine
    from edgelm.bench.speculation.measure import measure_works
    from edgelm.bench.speculation.report import (
        SpeculationReport,
        speculation_table,
        write_speculation_report,
    )
    from edgelm.devices.detection.threads import physical_cores
    from edgelm.runtime import load

    if len(arguments.bundle) != 1:
        raise BadInput("--speculation measures one bundle; give one")
    with load(
        arguments.bundle[0], threads=arguments.threads, speculation=arguments.speculation
    ) as lm:
        results = measure_works(
            lm,
            arguments.speculation,
            rounds=arguments.rounds,
            works=arguments.work and [one.strip() for one in arguments.work.split(",")],
            progress=lambda line: print(line, file=sys.stderr, flush=True),
        )
        report = SpeculationReport(
            bundle=lm.folder.resolve().name,
            mode=arguments.speculation,
            command=command,
            machine=describe_machine(arguments.threads or physical_cores()),
            costs=lm.step_ratios,
            results=results,
        )
    write_speculation_report(report, arguments.out)
    print(speculation_table(report))


def _measure(arguments: argparse.Namespace, command: str) -> None:
    from edgelm.bench.benchmark import Benchmark, run_benchmark
    from edgelm.bench.workload import workload

    tests = workload(
        _numbers(arguments.prompt, "--prompt", least=1),
        _numbers(arguments.generate, "--generate", least=1),
        _numbers(arguments.depth, "--depth", least=0),
    )
    run_benchmark(
        Benchmark(
            bundles=tuple(arguments.bundle),
            tests=tuple(tests),
            rounds=arguments.rounds,
            peers=tuple(_peer_names(arguments)),
            source=arguments.source,
            quality=not arguments.no_quality,
            quality_text=arguments.quality_text,
            threads=arguments.threads,
            cache=_cache(arguments),
            out=arguments.out,
            command=command,
        )
    )


def _peer_names(arguments: argparse.Namespace) -> list[str]:
    names = [name.strip() for name in arguments.peers.split(",")]
    return [name for name in dict.fromkeys(names) if name]


def _numbers(text: str, option: str, *, least: int) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [-1]
    if min(numbers) < least:
        raise BadInput(f"{option} {text!r}: expected whole numbers from {least}, e.g. 0,512,4096")
    return numbers


def _cache(arguments: argparse.Namespace) -> Path:
    if arguments.cache:
        return Path(arguments.cache)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edgelm" / "bench"


if __name__ == "__main__":
    raise SystemExit(main())
