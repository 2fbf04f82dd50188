"""`edge-devices`: what devices are, what a model will cost on one, what is wrong with this one."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edgelm.cli import format_bytes, positive_int, run_command, size_argument
from edgelm.errors import BadInput
from edgelm.quantize.precision import KV_BYTES

_EPILOG = """\
examples:
  edge-devices plan HuggingFaceTB/SmolLM2-135M-Instruct --target jetson-orin-nano --min-tok-s 30
  edge-devices doctor bundle/

Your own profiles go before ours: EDGELM_PROFILES=folder, and `calibrate` writes one.
exit codes: 0 done, 1 nothing fits or the doctor found an error, 2 bad input
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="edge-devices",
        description="Device profiles, plans, detection, calibration and a doctor.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    listing = verbs.add_parser("list", help="every known device")
    _json(listing)

    show = verbs.add_parser("show", help="one profile: its numbers and where they are from")
    show.add_argument("name", help="a target or one of its aliases")
    _json(show)

    plan = verbs.add_parser("plan", help="what a model costs on a device, and what would fit")
    _plan_options(plan)
    _json(plan)

    detect = verbs.add_parser("detect", help="what this machine is")
    _json(detect)

    doctor = verbs.add_parser("doctor", help="what is wrong on this machine, and how to fix it")
    doctor.add_argument("bundle", nargs="?", type=Path, help="a bundle that is to run here")
    _json(doctor)

    calibrate = verbs.add_parser("calibrate", help="measure this machine and write its profile")
    calibrate.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="folder (default: EDGELM_PROFILES' first)"
    )
    calibrate.add_argument("--threads", type=positive_int, metavar="N", help="physical cores")

    fit = verbs.add_parser("fit", help="fit the cost model to published measurements")
    fit.add_argument("rows", type=Path, help="CSV of published measurements")
    fit.add_argument("--judge", type=Path, metavar="CSV", help="only predict these rows, unfitted")
    fit.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the coefficients")
    fit.add_argument("--report", type=Path, metavar="DIR", help="write the table and the plot")
    return parser


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _plan_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", help="Hugging Face folder, hub id, .gguf file or bundle; only its configuration")
    add("--target", required=True, help="device: `edge-devices list`")
    add("--precision", default="auto", help="only this one (default: every one of the device)")
    add("--kv", choices=list(KV_BYTES), help="only this cache type")
    add("--context", type=positive_int, metavar="N", help="tokens the cache holds")
    add("--prompt", type=positive_int, default=512, metavar="N", help="default: 512")
    add("--batch", type=positive_int, default=1, metavar="N", help="sequences (default: 1)")
    add("--engine", help="engine of the device (default: its first)")
    add("--power-mode", metavar="MODE", help="default: the device's fastest")
    add("--min-tok-s", type=float, metavar="X", help="decode rate that must be reached")
    add("--max-memory", type=size_argument, metavar="SIZE", help="e.g. 4GB (default: the device's)")
    add("--revision", help="commit, tag or branch of a hub id")


def main(argv: list[str] | None = None) -> int:
    """Entry point of `edge-devices`."""
    arguments = parser().parse_args(argv)
    return run_command(lambda: _VERBS[arguments.verb](arguments))


def _list(arguments: argparse.Namespace) -> None:
    from edgelm.devices.profile import load_profiles

    profiles = load_profiles()
    if arguments.json:
        print(_as_json(profiles))
        return
    print(f"{'target':<27} {'memory':>9} {'bandwidth':>10}  {'engine':<18} also called")
    for one in profiles:
        size = format_bytes(one.memory.bytes.value) if one.memory.bytes else "this one's"
        rate = f"{one.mode().bandwidth_gb_s.value:,.0f} GB/s"
        aliases = ", ".join(one.aliases)
        print(f"{one.name:<27} {size:>9} {rate:>10}  {one.engines[0].name:<18} {aliases}".rstrip())


def _show(arguments: argparse.Namespace) -> None:
    from edgelm.devices.profile import load_profile
    from edgelm.devices.profile_text import describe

    profile = load_profile(arguments.name)
    print(_as_json(profile) if arguments.json else describe(profile))


def _plan(arguments: argparse.Namespace) -> int:
    from edgelm.devices.planner.plan import choices, plan
    from edgelm.devices.planner.plan_text import choice_table, shape_table
    from edgelm.devices.planner.shapes import nearest_shapes
    from edgelm.devices.profile import load_profile
    from edgelm.planning import PlanRequest

    request = PlanRequest(
        precision=arguments.precision,
        kv=arguments.kv,
        context=arguments.context,
        engine=arguments.engine,
        power_mode=arguments.power_mode,
        prompt=arguments.prompt,
        batch=arguments.batch,
        max_memory_bytes=arguments.max_memory,
        min_tokens_per_second=arguments.min_tok_s,
    )
    profile = load_profile(arguments.target)
    spec = _spec(arguments.model, arguments.revision)
    ranked = choices(spec, profile, request)
    best = ranked[0]
    shapes = [] if best.works else nearest_shapes(spec, profile, request)
    if arguments.json:
        print(_as_json({"works": best.works, "choices": ranked, "shapes": shapes}))
        return 0 if best.works else 1
    chosen = msgspec.structs.replace(request, precision=best.precision, kv=best.kv)
    print(choice_table(ranked), plan(spec, profile, chosen).table(), sep="\n\n")
    if not best.works:
        print(shape_table(shapes), sep="\n")
    return 0 if best.works else 1


def _spec(model: str, revision: str | None) -> Any:
    from edgelm.bundle import MANIFEST, read_manifest
    from edgelm.checkpoint.source import read_spec

    if (Path(model) / MANIFEST).is_file():
        return read_manifest(Path(model)).spec
    return read_spec(model, revision=revision)


def _detect(arguments: argparse.Namespace) -> None:
    from edgelm.devices.detection.detect import describe, detect

    machine = detect()
    print(_as_json(machine) if arguments.json else describe(machine))


def _doctor(arguments: argparse.Namespace) -> int:
    from edgelm.bundle import read_manifest
    from edgelm.devices.detection.detect import detect
    from edgelm.devices.doctor import describe, examine, exit_code

    manifest = read_manifest(arguments.bundle) if arguments.bundle else None
    findings = examine(detect(), manifest=manifest)
    print(_as_json(findings) if arguments.json else describe(findings))
    return exit_code(findings)


def _calibrate(arguments: argparse.Namespace) -> None:
    from edgelm.devices.calibration.calibrate import calibrate

    path = calibrate(arguments.output, threads=arguments.threads, progress=_progress)
    print(path)


def _fit(arguments: argparse.Namespace) -> None:
    # Before numpy loads: on matrices this small, threads only wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from edgelm.devices.published.run import fit_rows, judge_rows

    if arguments.judge:
        if arguments.output:
            raise BadInput("--judge predicts rows that were not fitted and writes no coefficients")
        judge_rows(arguments.rows, arguments.judge, arguments.report)
    else:
        fit_rows(arguments.rows, arguments.output, arguments.report)


_VERBS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "list": _list,
    "show": _show,
    "plan": _plan,
    "detect": _detect,
    "doctor": _doctor,
    "calibrate": _calibrate,
    "fit": _fit,
}


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _as_json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


if __name__ == "__main__":
    raise SystemExit(main())
