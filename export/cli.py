"""`edge-export`: make a bundle, plan one, or check one."""

import argparse
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgelm.cli import format_bytes, parse_bytes, positive_int, run_command
from edgelm.errors import BadInput
from edgelm.export.bundle_commands import list_targets, print_manifest, sign, trust, verify
from edgelm.export.draft_command import export_draft_model, plan_assistant
from edgelm.quantize.precision import GROUP_SIZES, KV_BYTES, PRECISIONS

if TYPE_CHECKING:
    from edgelm.devices.profile import Profile
    from edgelm.planning import PlanRequest
    from edgelm.spec.decoder import DecoderSpec

_EPILOG = """\
precisions:
  auto   the smallest mixture of int4 and int8 that stays close enough to the source
  int8   nearly lossless, half the size of fp16; int4 is half of that, but hurts small models

example:
  edge-export HuggingFaceTB/SmolLM2-135M-Instruct --target cpu -o bundle/
  edge-run bundle/ "Why is the sky blue?"

for a Jetson, whose engine is compiled on the device itself:
  edge-export MODEL --target jetson-orin -o bundle/    here
  edge-export --finalize bundle/                       there

exit codes: 0 done, 1 the quality gate failed, 2 bad input, 3 a bug in edgelm
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="edge-export",
        description="Export a language model to a quantized bundle for a device.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", nargs="?", help="Hugging Face folder, hub id, or .gguf file")
    add("-o", "--output", type=Path, metavar="DIR", help="folder to write the bundle to")
    add("--target", default="cpu", help="device, or `this` machine (default: cpu)")
    add("--engine", help="one of the target's engines, e.g. onnxruntime-cuda (default: its first)")
    add(
        "--sm",
        action="append",
        type=positive_int,
        default=[],
        metavar="N",
        help="compute capability to compile for, e.g. 89; repeatable",
    )
    add(
        "--precision",
        metavar="NAME",
        help=f"auto, source, {', '.join(PRECISIONS)} (default: auto; source if quantized already)",
    )
    add(
        "--max-size",
        metavar="SIZE",
        help="best mixture of at most this size, e.g. 98MB (default: the smallest that passes)",
    )
    add(
        "--method",
        default="auto",
        help="auto, rtn, gptq, awq or hqq (default: auto)",
    )
    add("--kv", choices=list(KV_BYTES), help="cache type (default: int8 on a CPU, else 16 bits)")
    add(
        "--context",
        type=positive_int,
        metavar="N",
        help="tokens the cache holds (default: the target's)",
    )
    add(
        "--group-size",
        type=int,
        choices=GROUP_SIZES,
        help="weights per scale (default: int8 32, int4 128 on a CPU, else 64)",
    )
    add(
        "--symmetric",
        action=argparse.BooleanOptionalAction,
        help="no zero points (default: int8 yes, int4 no)",
    )
    add(
        "--layer",
        action="append",
        default=[],
        metavar="PATTERN=P",
        help="precision of groups: 'layers.0.*=int8'; repeatable",
    )
    add(
        "--gate",
        choices=["on", "off"],
        default="on",
        help="off: write the bundle even if the gate fails",
    )
    add("--calibration", type=Path, metavar="FILE", help="calibration text (default: built in)")
    add(
        "--gate-text",
        type=Path,
        metavar="FILE",
        help="text of the quality gate (default: built in)",
    )
    add(
        "--work",
        type=Path,
        metavar="DIR",
        help="cache results in DIR; later exports resume from it",
    )
    add(
        "--draft-for",
        type=Path,
        metavar="BUNDLE",
        help="export MODEL as this bundle's draft model, into draft/",
    )
    add(
        "--draft-head",
        action="store_true",
        help="also export the draft head of MODEL (Qwen3.5)",
    )
    add(
        "--assistant",
        metavar="DIR",
        help="also export this assistant of MODEL (Gemma 4)",
    )
    add(
        "--segments",
        type=_segments,
        default="auto",
        metavar="N",
        help="compile in N segments one by one (default: auto)",
    )
    add(
        "--adapter",
        action="append",
        default=[],
        metavar="DIR",
        help="a PEFT LoRA, merged before quantizing",
    )
    add(
        "--switchable",
        action="store_true",
        help="do not merge; requests choose among --adapter NAME=DIR",
    )
    add("--revision", help="commit, tag or branch of a hub id")
    add("--plan", action="store_true", help="only predict size, memory and speed; no weights read")
    add("--json", action="store_true", help="print the plan or the manifest as JSON")
    mode = parser.add_mutually_exclusive_group().add_argument
    mode("--list-targets", action="store_true", help="print the known targets")
    mode("--verify", type=Path, metavar="BUNDLE", help="check every hash of a bundle")
    mode("--sign", nargs=2, metavar=("BUNDLE", "KEY"), help="sign a bundle with an Ed25519 key")
    mode(
        "--finalize",
        type=Path,
        metavar="BUNDLE",
        help="compile a bundle's engine, on its own device",
    )
    mode(
        "--trust",
        type=Path,
        metavar="BUNDLE",
        help="let engines compiled elsewhere run on this machine",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point of `edge-export`."""
    arguments = parser().parse_args(argv)
    # SIGTERM cleans up like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    modes = ("list_targets", "verify", "sign", "finalize", "trust")
    chosen = [mode for mode in modes if getattr(arguments, mode)]
    if chosen and (arguments.model or arguments.output or arguments.draft_for):
        raise BadInput(
            f"--{chosen[0].replace('_', '-')} exports nothing; leave out the model, -o and "
            "--draft-for, or run two commands"
        )
    if arguments.list_targets:
        return list_targets()
    if arguments.verify:
        return verify(arguments.verify)
    if arguments.sign:
        return sign(*map(Path, arguments.sign))
    if arguments.finalize:
        return _finalize(arguments.finalize)
    if arguments.trust:
        return trust(arguments.trust)
    if not arguments.model:
        raise BadInput("give a model: a Hugging Face folder, a hub id or a .gguf file")
    if arguments.draft_for:
        exceptions = dict(_exception(text) for text in arguments.layer)
        defaults = parser().parse_args([arguments.model])
        return export_draft_model(arguments, defaults, exceptions, _log_line)
    if arguments.plan:
        return _plan(arguments)
    if not arguments.output:
        raise BadInput("give a folder to write the bundle to: -o DIR")
    return _export(arguments)


def _finalize(folder: Path) -> None:
    from edgelm.runtime.engines.finalize import finalize

    manifest = finalize(folder, progress=_log_line)
    print(f"{folder}: {manifest.engines[0].file} is ready")
    print(_run_hint(folder))


def _log_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _run_hint(folder: Path) -> str:
    return f'run it: edge-run {folder} "Why is the sky blue?"'


def _plan(arguments: argparse.Namespace) -> None:
    from edgelm.checkpoint.source import read_spec
    from edgelm.devices.planner.plan import plan
    from edgelm.devices.this_machine import target_profile
    from edgelm.planning import SOURCE, PlanRequest

    request = PlanRequest(
        "auto" if arguments.precision is None else arguments.precision,
        arguments.kv,
        arguments.context,
        arguments.group_size,
        arguments.symmetric,
        arguments.engine,
        draft_head=arguments.draft_head,
    )
    spec = read_spec(arguments.model, revision=arguments.revision)
    if arguments.assistant is not None:
        request = plan_assistant(arguments, request, spec)
    profile = target_profile(arguments.target)
    if arguments.adapter or arguments.switchable:
        _check_adapters(arguments, profile)
    _check_options(arguments, request, spec)
    if arguments.precision in (None, SOURCE):
        request = _of_source(arguments, request, profile)
    result = plan(spec, profile, request)
    print(_json(result) if arguments.json else result.table())


def _check_options(
    arguments: argparse.Namespace, request: "PlanRequest", spec: "DecoderSpec"
) -> None:
    """Refuse what the export would refuse, although the plan does not depend on it."""
    exceptions = dict(_exception(text) for text in arguments.layer)
    max_size = None if arguments.max_size is None else parse_bytes(arguments.max_size)
    if not exceptions and (max_size, arguments.segments, arguments.method) == (None, None, "auto"):
        return
    from edgelm.export.request import ExportRequest  # imports torch
    from edgelm.spec.groups import groups

    method, segments = arguments.method, arguments.segments
    ExportRequest(request, exceptions, method=method, max_size=max_size, segments=segments).check(
        groups(spec)
    )


def _check_adapters(arguments: argparse.Namespace, profile: "Profile") -> None:
    from edgelm.export.adapters.options import (
        check_drafts,
        check_planned,
        chosen_adapters,
    )

    merged, switchable = chosen_adapters(arguments.adapter, switchable=arguments.switchable)
    check_drafts(switchable, draft_head=arguments.draft_head, assistant=arguments.assistant)
    check_planned(merged, switchable, engine=profile.engine(arguments.engine).name)


def _of_source(
    arguments: argparse.Namespace, request: "PlanRequest", profile: "Profile"
) -> "PlanRequest":
    """The request for a checkpoint that is quantized already; others as they are."""
    from edgelm.checkpoint.source import (
        is_gguf,
        open_checkpoint,
        quantization_reader,
        read_spec,
    )
    from edgelm.checkpoint.weights.files import has_weights
    from edgelm.planning import SOURCE

    reader = quantization_reader(arguments.model, revision=arguments.revision)
    if request.precision != SOURCE and not is_gguf(Path(arguments.model)) and reader is None:
        return request
    if reader is not None and not has_weights(Path(arguments.model)):
        spec = read_spec(arguments.model, revision=arguments.revision)
        from edgelm.export.precision.source_plan import declared_weights

        declared = declared_weights(reader, spec, profile.engine(request.engine))
        return msgspec.structs.replace(request, precision=SOURCE, source=declared)
    checkpoint = open_checkpoint(arguments.model, revision=arguments.revision)
    precision = arguments.precision or checkpoint.default_precision
    request = msgspec.structs.replace(request, precision=precision)
    if precision != SOURCE:
        return request
    from edgelm.export.precision.source_plan import with_source  # imports torch

    return with_source(request, checkpoint, profile)


def _export(arguments: argparse.Namespace) -> None:
    from edgelm.export.adapters.options import chosen_adapters
    from edgelm.export.pipeline import export_model

    merged, switchable = chosen_adapters(arguments.adapter, switchable=arguments.switchable)
    texts = {
        name: value
        for name in ("calibration", "gate_text")
        if (value := getattr(arguments, name)) is not None
    }
    manifest = export_model(
        arguments.model,
        arguments.output,
        target=arguments.target,
        precision=arguments.precision,
        kv=arguments.kv,
        context=arguments.context,
        group_size=arguments.group_size,
        symmetric=arguments.symmetric,
        exceptions=dict(_exception(text) for text in arguments.layer),
        gate=arguments.gate,
        revision=arguments.revision,
        engine=arguments.engine,
        compute_capabilities=arguments.sm,
        method=arguments.method,
        max_size=arguments.max_size,
        work=arguments.work,
        segments=arguments.segments,
        adapter=merged,
        switchable_adapters=switchable,
        draft_head=arguments.draft_head,
        assistant=arguments.assistant,
        progress=_log_line,
        **texts,
    )
    if arguments.json:
        print_manifest(arguments.output)
        return
    size = sum(entry.bytes for entry in manifest.files.values())
    bits = 8 * manifest.weight_bytes / manifest.spec.parameters
    print(f"{arguments.output}: {format_bytes(size)}, {bits:.2f} bits per weight")
    if manifest.pending:
        print(
            f"its engine is pending: copy the folder to the {manifest.target} and compile it there:"
            f"\n  edge-export --finalize {arguments.output.name}"
        )
        return
    for engine in manifest.engines:
        made_for = ", ".join(f"sm_{sm}" for sm in engine.compute_capabilities)
        print(f"compiled: {engine.file} for {made_for} in {engine.build_seconds:.1f} s")
    print(_run_hint(arguments.output))


def _segments(text: str) -> int | None:
    return None if text == "auto" else positive_int(text)


def _exception(text: str) -> tuple[str, str]:
    pattern, separator, precision = text.rpartition("=")
    if not separator or not pattern:
        raise BadInput(f"--layer {text!r}: expected PATTERN=PRECISION, e.g. 'layers.0.*=int8'")
    return pattern, precision


def _json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=1).decode()


if __name__ == "__main__":
    raise SystemExit(main())
