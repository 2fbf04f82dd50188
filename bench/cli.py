"""`edge-bench`: measure a bundle, beside its peers if asked, and write the report."""

import argparse
import os
import shlex
import sys
from pathlib import Path

import msgspec

from edgelm.cli import positive_int, run_command
from edgelm.errors import BadInput

_EPILOG = """\
tests are named as in llama-bench: pp512 processes a prompt of 512 tokens, tg128@d4096 generates
128 tokens after 4,096. Peers run in an environment of their own: edge-bench --setup-peers.

example:
  edge-bench bundle/ -p 512 -n 128 -d 0,512,4096 -r 5 --peers llama.cpp --out report/
"""
_PEERS = "onnxruntime-genai,llama.cpp,transformers,transformers-static"


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
        help="bundles of one source, or of students and their teacher",
    )
    add("-p", "--prompt", default="512", metavar="N,..", help="prompt tokens (default: 512)")
    add("-n", "--generate", default="128", metavar="N,..", help="tokens to generate (default: 128)")
    add("-d", "--depth", default="0,512", metavar="N,..", help="tokens before (default: 0,512)")
    add("-r", "--rounds", type=positive_int, default=5, help="rounds after warm-up (default: 5)")
    add("--peers", default="", metavar="A,B", help=f"among {_PEERS} (default: none)")
    add("--source", help="model to compare with: the bundles' source, or a student's teacher")
    add("--quality-text", type=Path, metavar="FILE", help="text for KL (default: built in)")
    add("--no-quality", action="store_true", help="leave out KL and top-1")
    add("--threads", type=positive_int, metavar="N", help="default: physical cores")
    add("--cache", type=Path, metavar="DIR", help="where peers' model files are kept")
    add("--out", type=Path, default=Path("report"), metavar="DIR", help="default: report/")
    add("--check-plan", action="store_true", help="measure what the planner predicts here")
    add("--setup-peers", action="store_true", help="install the peers' environment, then measure")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point of `edge-bench`."""
    arguments = parser().parse_args(argv)
    given = sys.argv[1:] if argv is None else argv
    return run_command(lambda: _run(arguments, shlex.join(["edge-bench", *given])))


def _run(arguments: argparse.Namespace, command: str) -> None:
    if arguments.setup_peers:
        from edgelm.bench.peers.install import set_up

        set_up()
    if arguments.check_plan:
        _check_plan(arguments)
    elif arguments.bundle:
        _measure(arguments, command)
    elif not arguments.setup_peers:
        raise BadInput("give at least one bundle, or --setup-peers, or --check-plan")


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


def _measure(arguments: argparse.Namespace, command: str) -> None:
    from edgelm.bench.machine import describe_machine
    from edgelm.bench.measure import measure
    from edgelm.bench.peers.engines import STATIC_CACHE, bundle_engines, peer_engines
    from edgelm.bench.peers.sources import Sources, find_source
    from edgelm.bench.quality import Quality
    from edgelm.bench.report.html import html
    from edgelm.bench.report.markdown import markdown, table
    from edgelm.bench.report.notes import why_invalid
    from edgelm.bench.report.report import make_report, write_json
    from edgelm.bench.workload import context_needed, workload
    from edgelm.bundle import read_manifest
    from edgelm.devices.detection.threads import physical_cores
    from edgelm.devices.sensors import open_sensors
    from edgelm.export.source.text import GATE

    manifests = {folder: read_manifest(folder) for folder in arguments.bundle}
    first = manifests[arguments.bundle[0]]
    tests = workload(
        _numbers(arguments.prompt, "--prompt", least=1),
        _numbers(arguments.generate, "--generate", least=1),
        _numbers(arguments.depth, "--depth", least=0),
    )
    context = context_needed(tests)
    for folder, manifest in manifests.items():
        if context > manifest.limits.context:
            raise BadInput(
                f"these tests need a context of {context}, {folder} has "
                f"{manifest.limits.context}; use a smaller depth or export with more --context"
            )
    out: Path = arguments.out
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out {out} is a file; expected a folder for the report")
    if arguments.quality_text and not arguments.quality_text.is_file():
        raise BadInput(f"no such text file: {arguments.quality_text}")
    names = [name for name in arguments.peers.split(",") if name]
    quality_text = arguments.quality_text or GATE
    source = None
    if names or not arguments.no_quality:
        source = find_source(list(manifests.values()), arguments.source)
    sources = Sources(source, _cache(arguments)) if source else None
    peers, absent = peer_engines(names, sources)
    threads = arguments.threads or physical_cores()
    on_gpu = any(manifest.engine.name != "onnxruntime" for manifest in manifests.values())
    machine = describe_machine(threads, gpu=on_gpu or STATIC_CACHE in names)
    ours = bundle_engines(manifests)

    def quality() -> Quality:
        assert source is not None
        tokenizer = arguments.bundle[0] / "tokenizer.json"
        return Quality(source.checkpoint, tokenizer, quality_text, context)

    sensors = open_sensors()
    samples, failed = measure(
        [*ours, *peers],
        tests,
        rounds=arguments.rounds,
        context=context,
        threads=threads,
        quality=None if arguments.no_quality else quality,
        sensors=sensors,
    )
    if not samples:
        reasons = "; ".join(f"{peer.name}: {peer.reason}" for peer in (*absent, *failed))
        raise BadInput(f"nothing could be measured: {reasons}")
    report = make_report(
        samples,
        [*absent, *failed],
        manifest=first,
        source=source,
        machine=machine,
        command=command,
        rounds=arguments.rounds,
        quality_text=quality_text.name,
        sensors=sensors,
    )
    out.mkdir(parents=True, exist_ok=True)
    write_json(report, out / "report.json")
    (out / "report.md").write_text(markdown(report))
    (out / "report.html").write_text(html(report))
    print("\n".join(table(report)))
    for peer in (*absent, *failed):
        print(f"not measured: {peer.name}: {peer.reason}")
    print(f"report: {out / 'report.html'}")
    if report.throttled:
        print(f"warning: {why_invalid(report)}", file=sys.stderr)


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
