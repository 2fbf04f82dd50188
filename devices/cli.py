"""`edge-devices`: device profiles, plans, detection of this machine and its problems."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgelm.cli import bytes_argument, positive_int, run_command
from edgelm.errors import BadInput
from edgelm.quantize.precision import KV_BYTES

if TYPE_CHECKING:
    from edgelm.devices.planner.speculation import SpeculationPlan
    from edgelm.devices.profile import Profile
    from edgelm.planning import PlanRequest
    from edgelm.spec.decoder import DecoderSpec

_EPILOG = """\
examples:
  edge-devices plan HuggingFaceTB/SmolLM2-135M-Instruct --target jetson-orin-nano --min-tok-s 30
  edge-devices models --target jetson-orin-nano
  edge-devices doctor bundle/

Profiles in the folders of EDGELM_PROFILES replace built-in ones; `calibrate` writes one.
exit codes: 0 done, 1 nothing fits or the doctor found an error, 2 bad input, 3 a bug in edgelm
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="edge-devices",
        description="Show devices, predict how a model runs on one, and examine this machine.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    listing = verbs.add_parser("list", help="list all known devices")
    _json(listing)

    show = verbs.add_parser("show", help="print a device profile, with the source of every number")
    show.add_argument("name", help="a target or one of its aliases")
    _json(show)

    plan = verbs.add_parser("plan", help="predict memory, speed and energy of a model on a device")
    _plan_options(plan)
    _json(plan)

    models = verbs.add_parser("models", help="rank the known models that run on a device")
    _request_options(models)
    _json(models)

    detect = verbs.add_parser("detect", help="identify this machine")
    _json(detect)

    doctor = verbs.add_parser("doctor", help="find problems of this machine, and print the fixes")
    doctor.add_argument(
        "bundle", nargs="?", type=Path, help="also check that this bundle can run here"
    )
    _json(doctor)

    calibrate = verbs.add_parser(
        "calibrate", help="measure this machine and write its device profile"
    )
    calibrate.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="folder to write to (default: the first of EDGELM_PROFILES)",
    )
    calibrate.add_argument(
        "--threads",
        type=positive_int,
        metavar="N",
        help="threads to measure with (default: physical cores)",
    )

    fit = verbs.add_parser("fit", help="fit the cost model to published measurements")
    fit.add_argument("rows", type=Path, help="CSV file of published measurements")
    fit.add_argument(
        "--predict",
        type=Path,
        metavar="CSV",
        help="predict these rows, which are not fitted, and print the errors",
    )
    fit.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="file to write the coefficients to"
    )
    fit.add_argument(
        "--report", type=Path, metavar="DIR", help="folder to write a table and a plot to"
    )
    return parser


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _plan_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "model",
        help="Hugging Face folder, hub id, .gguf file or bundle; only its configuration is read",
    )
    _request_options(parser)
    add("--revision", help="commit, tag or branch of a hub id")
    add(
        "--draft",
        metavar="MODEL",
        help="also predict what speculation gains with this draft model, `head` or `lookup`",
    )
    add(
        "--acceptance",
        type=_share,
        metavar="A",
        help="share of drafted tokens that are accepted, 0 to 1 (default: 0.4, 0.6 and 0.8)",
    )


def _request_options(parser: argparse.ArgumentParser) -> None:
    """What is planned for: the device, and what a deployment must be there."""
    add = parser.add_argument
    add(
        "--target",
        required=True,
        help="a device name from `edge-devices list`, or `this` for this machine",
    )
    add(
        "--precision", default="auto", help="only this precision (default: all that the device has)"
    )
    add("--kv", choices=list(KV_BYTES), help="only this type of KV cache")
    add("--context", type=positive_int, metavar="N", help="context length in tokens")
    add(
        "--prompt",
        type=positive_int,
        default=512,
        metavar="N",
        help="prompt length in tokens (default: 512)",
    )
    add(
        "--batch",
        type=positive_int,
        default=1,
        metavar="N",
        help="number of sequences (default: 1)",
    )
    add("--engine", help="engine of the device (default: the first of its profile)")
    add("--power-mode", metavar="MODE", help="power mode of the device (default: the fastest)")
    add("--min-tok-s", type=float, metavar="X", help="minimum decode speed in tokens/s")
    add(
        "--max-memory",
        type=bytes_argument,
        metavar="SIZE",
        help="memory budget, e.g. 4GB (default: what the device leaves free)",
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point of `edge-devices`."""
    arguments = parser().parse_args(argv)
    return run_command(lambda: _VERBS[arguments.verb](arguments))


def _list(arguments: argparse.Namespace) -> None:
    from edgelm.devices.profile import load_profiles
    from edgelm.devices.profile_text import device_table

    profiles = load_profiles()
    if arguments.json:
        print(_as_json(profiles))
        return
    print(device_table(profiles))


def _show(arguments: argparse.Namespace) -> None:
    from edgelm.devices.profile import load_profile
    from edgelm.devices.profile_text import describe

    profile = load_profile(arguments.name)
    print(_as_json(profile) if arguments.json else describe(profile))


def _plan(arguments: argparse.Namespace) -> int:
    from edgelm.devices.planner.models.smaller_models import smaller_models
    from edgelm.devices.planner.plan import choices, plan
    from edgelm.devices.planner.plan_text import choice_table, smaller_models_table
    from edgelm.devices.this_machine import target_profile

    request = _request(arguments)
    profile = target_profile(arguments.target)
    spec = _spec(arguments.model, arguments.revision)
    ranked = choices(spec, profile, request)
    best = ranked[0]
    smaller = [] if best.works else smaller_models(spec, profile, request)
    chosen = msgspec.structs.replace(request, precision=best.precision, kv=best.kv)
    described = plan(spec, profile, chosen)  # with advice
    speculation = _speculation(arguments, spec, profile, chosen)
    if arguments.json:
        plans = [described, *ranked[1:]]
        record = {"works": best.works, "choices": plans, "shapes": smaller}
        print(_as_json(record | ({"speculation": speculation} if speculation else {})))
        return 0 if best.works else 1
    print(choice_table(ranked), described.table(), sep="\n\n")
    if speculation:
        print("\n" + speculation.table())
    if not best.works:
        print(smaller_models_table(smaller), sep="\n")
    return 0 if best.works else 1


def _speculation(
    arguments: argparse.Namespace, spec: "DecoderSpec", profile: "Profile", request: "PlanRequest"
) -> "SpeculationPlan | None":
    from edgelm.devices.planner.speculation import HEAD, LOOKUP, speculation_plan
    from edgelm.spec.draft_head import draft_head_spec

    if arguments.draft is None:
        if arguments.acceptance is not None:
            raise BadInput("--acceptance is for --draft; give a draft model, `head` or `lookup`")
        return None
    if arguments.draft == HEAD:
        draft: DecoderSpec | None = draft_head_spec(spec)
    else:
        draft = None if arguments.draft == LOOKUP else _draft_spec(arguments.draft, spec)
    return speculation_plan(spec, profile, request, draft, acceptance=arguments.acceptance)


def _draft_spec(source: str, model: "DecoderSpec") -> "DecoderSpec":
    from edgelm.checkpoint.drafts.assistant import is_assistant, read_assistant_spec

    return read_assistant_spec(source, model) if is_assistant(source) else _spec(source, None)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share, expected a number from 0 to 1")
    return value


def _models(arguments: argparse.Namespace) -> int:
    from edgelm.devices.planner.models.what_runs import what_runs
    from edgelm.devices.planner.models.what_runs_text import candidates_table
    from edgelm.devices.this_machine import target_profile

    found = what_runs(target_profile(arguments.target), _request(arguments))
    print(_as_json(found) if arguments.json else candidates_table(found))
    return 0 if found[0].works else 1


def _request(arguments: argparse.Namespace) -> Any:
    from edgelm.planning import PlanRequest

    return PlanRequest(
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
    results = examine(detect(), manifest=manifest)
    print(_as_json(results) if arguments.json else describe(results))
    return exit_code(results)


def _calibrate(arguments: argparse.Namespace) -> None:
    from edgelm.devices.calibration.calibrate import calibrate

    path = calibrate(arguments.output, threads=arguments.threads, progress=_progress)
    print(path)


def _fit(arguments: argparse.Namespace) -> None:
    # Before numpy loads: on matrices this small, threads only wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from edgelm.devices.published.run import fit_rows, predict_rows

    if arguments.predict:
        if arguments.output:
            raise BadInput(
                "--predict fits nothing, so there are no coefficients to write; leave out --output"
            )
        predict_rows(arguments.rows, arguments.predict, arguments.report)
    else:
        fit_rows(arguments.rows, arguments.output, arguments.report)


_VERBS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "list": _list,
    "show": _show,
    "plan": _plan,
    "models": _models,
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
