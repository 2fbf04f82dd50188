r"""Homogeneous search against Puzzle, at equal predicted decode time and equal tokens.

    python -m bench.studies.compress.puzzle_arms run TEACHER --data train.jsonl \
        --held-out valid.jsonl --arm puzzle --ratio 0.7 --tokens 2M --out runs/
    python -m bench.studies.compress.puzzle_arms table runs/
    python -m bench.studies.compress.puzzle_arms compare runs/ TEACHER --text valid.jsonl --rows 32

`--ratio` is the decode time of the student relative to the teacher's, as the planner predicts it
for the target. Both arms distill on the same tokens in the same order; what an arm spends before
(finalists of the search, local distillation of Puzzle) is listed beside. A run resumes where it was
interrupted; all share data and importance, runs of one ratio that follow each other their search,
and those of Puzzle their alternatives and scores.
"""

import argparse
from pathlib import Path

import msgspec
import torch

from edgelm.checkpoint.source import read_spec
from edgelm.checkpoint.student import StudentRecord, read_student_record
from edgelm.cli import size_argument
from edgelm.compress.distillation.cache_settings import CacheSettings
from edgelm.compress.puzzle.costs import PuzzleCosts
from edgelm.compress.puzzle.settings import PuzzleSettings
from edgelm.compress.recipe import Recipe
from edgelm.compress.recipe.tables import DistillStage, ImportanceSettings, Target
from edgelm.compress.search.settings import SearchSettings
from edgelm.devices.profile import load_profile

ARMS = ("search", "puzzle", "heads")  # the last one is Puzzle with fewer key heads, too


def main(arguments: list[str] | None = None) -> int:
    """Run one arm, or print the table of all."""
    options = _parser().parse_args(arguments)
    if options.command == "table":
        print(table(options.out))
    elif options.command == "compare":
        print(compare(options.out, options.teacher, options.text, options.length, options.rows))
    else:
        run(options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    add = one.add_argument
    add("teacher")
    add("--data", required=True)
    add("--held-out", required=True)
    add("--arm", choices=ARMS, required=True)
    add("--ratio", type=float, required=True)
    add("--target", default="cpu")
    add("--tokens", type=size_argument, default="2M", help="of the distillation (default: 2M)")
    add("--before", type=size_argument, default="200k", help="of either arm's search")
    add("--sequence-length", type=int, default=512)
    add("--mlp-ratios", type=float, nargs="+", default=PuzzleSettings().mlp_ratios)
    add("--kv-heads", type=int, nargs="+", default=(), help="of the arm heads, e.g. 2 1")
    add("--rounds", type=int, default=2, help="of the search's finalists (default: 2); 0: none")
    add("--max-tokens", type=size_argument, help="of the data (default: all)")
    add("--cached", action="store_true", help="compute the teacher's predictions once for all arms")
    add("--no-distill", action="store_true", help="compare before training only")
    add("--score-rows", type=int, default=8)
    add("--samples", type=int, default=64, help="rows for importance (default: 64)")
    add("--micro-batch", type=int, default=4)
    add("--learning-rate", type=float, default=5e-4)
    add("--out", type=Path, required=True)
    commands.add_parser("table").add_argument("out", type=Path)
    pairs = commands.add_parser("compare")
    pairs.add_argument("out", type=Path)
    pairs.add_argument("teacher")
    pairs.add_argument("--text", required=True)
    pairs.add_argument("--rows", type=int, default=32, help="of the text (default: 32)")
    pairs.add_argument("--length", type=int, default=512, help="tokens per row (default: 512)")
    return parser


def run(options: argparse.Namespace) -> None:
    """Compress by one arm into `OUT/ARM-RATIO-TOKENS`."""
    from edgelm.compress.pipeline import compress_model

    name = f"{options.arm}-{options.ratio:g}-{0 if options.no_distill else options.tokens}"
    record = compress_model(
        recipe_of(options),
        options.out / name,
        run=options.out / "run",  # all arms have the same data, teacher and importance
        progress=lambda line: print(line, flush=True),
        report=lambda line: print(line, flush=True),
    )
    print(f"{name}: {record.parameters / 1e6:.1f} M parameters")


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The recipe of an arm."""
    target = Target(name=options.target, context=1024)
    profile, spec = load_profile(target.name), read_spec(options.teacher)
    rate = PuzzleCosts(spec, profile, target.budget).plan(()).tokens_per_second.value
    target = msgspec.structs.replace(target, min_tokens_per_second=rate / options.ratio)
    distill = DistillStage(
        tokens=options.tokens,
        micro_batch=options.micro_batch,
        learning_rate=options.learning_rate,
        cache=CacheSettings() if options.cached else None,
    )
    step = distill.batch_size * options.sequence_length
    finalists, rounds = 2, options.rounds
    search = SearchSettings(
        candidates=8,
        finalists=finalists,
        kd_rounds=rounds,
        round_steps=max(1, options.before // (finalists * max(1, rounds) * step)),
        warmup_steps=2,
        settled_rounds=0,
        held_out_rows=options.score_rows,
    )
    puzzle = PuzzleSettings(
        mlp_ratios=tuple(options.mlp_ratios),
        kv_heads=tuple(options.kv_heads) if options.arm == "heads" else (),
        tokens=options.before,
        micro_batch=options.micro_batch,
        score_rows=options.score_rows,
    )
    return Recipe(
        teacher=options.teacher,
        data=(options.data,),
        held_out=options.held_out,
        sequence_length=options.sequence_length,
        max_tokens=options.max_tokens,
        target=target,
        importance=ImportanceSettings(samples=options.samples),
        search=search if options.arm == "search" else None,
        puzzle=None if options.arm == "search" else puzzle,
        distill=None if options.no_distill else distill,
    )


def table(out: Path) -> str:
    """All finished arms as a Markdown table."""
    lines = [
        "| decode time | arm | layers | parameters | tokens/s, predicted | KL before training "
        "| KL after | tokens before | tokens | minutes |",
        "|---:|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [_row(ratio, arm, record) for ratio, _, arm, record, _ in _finished(out)]
    return "\n".join(lines)


def compare(out: Path, teacher: str, text: str, length: int, count: int) -> str:
    """KL of all arms from the teacher on the same rows of a text, and the difference per pair."""
    from edgelm.compress.arithmetic import faster_type
    from edgelm.compress.data.documents import read_documents
    from edgelm.compress.evaluation.backends.student_backend import StudentBackend
    from edgelm.compress.evaluation.metrics import Metric
    from edgelm.compress.evaluation.tasks.text_quality import agreement_metrics
    from edgelm.compress.model import load_model, load_tokenizer
    from edgelm.compress.run.distributed import device

    dtype = faster_type(read_spec(teacher), device())
    full = load_model(teacher, dtype=dtype)
    texts = StudentBackend(full, load_tokenizer(teacher))
    rows = torch.tensor(texts.text_rows(read_documents(text), length, count))
    lines = [
        f"| decode time | tokens | arm | KL on {len(rows)} rows of {length} | top-1 "
        "| Puzzle minus the other arm |",
        "|---:|---:|---|---:|---:|---:|",
    ]
    of_puzzle: dict[tuple[float, int], Metric] = {}
    for ratio, tokens, arm, _, path in _finished(out):
        found = agreement_metrics(load_model(path, dtype=dtype), full, rows)
        kl, top1, gap = found["kl"].score(), found["top1"].score(), ""
        if arm == "puzzle":
            of_puzzle[ratio, tokens] = found["kl"]
        elif (puzzle := of_puzzle.get((ratio, tokens))) is not None:
            pair = puzzle.difference(found["kl"])
            gap = f"{pair.value:+.3f} ± {pair.error:.3f} ({pair.value / kl.value:+.0%})"
        lines.append(
            f"| ×{ratio:g} | {tokens:,} | {arm} | {kl.value:.3f} ± {kl.error:.3f} "
            f"| {top1.value:.1%} | {gap} |"
        )
    return "\n".join(lines)


def _finished(out: Path) -> list[tuple[float, int, str, StudentRecord, Path]]:
    """Ratio, tokens, arm, record and folder of all finished runs, largest ratio first."""
    found = []
    for path in out.iterdir():
        arm, _, rest = path.name.partition("-")
        if arm in ARMS and (record := read_student_record(path)) is not None:
            ratio, _, tokens = rest.partition("-")
            found.append((float(ratio), int(tokens), arm, record, path))
    return sorted(found, key=lambda one: (-one[0], one[1], one[2]))


def _row(ratio: float, arm: str, record: StudentRecord) -> str:
    stages = {one.name: one for one in record.stages}
    cut = stages["prune" if arm == "search" else "puzzle"]
    distilled = stages.get("distill")
    after = f"{distilled.figures['held_out_divergence']:.3f}" if distilled else "–"
    before = stages["search" if arm == "search" else "puzzle-library"].tokens
    speed = stages["search" if arm == "search" else "puzzle"].figures["tokens_per_second"]
    minutes = sum(one.seconds for one in record.stages) / 60
    return (
        f"| ×{ratio:g} | {arm} | {_layers(record)} | {record.parameters / 1e6:.1f} M "
        f"| {speed:.1f} | {cut.figures['held_out_divergence']:.3f} "
        f"| {after} | {before:,} | {distilled.tokens if distilled else 0:,} | {minutes:.0f} |"
    )


def _layers(record: StudentRecord) -> str:
    shape = record.shape
    chosen = next((one for one in record.stages if one.name == "puzzle"), None)
    if chosen is None:
        return (
            f"{shape['num_hidden_layers']} layers, hidden {shape['hidden_size']}, MLP "
            f"{shape['intermediate_size']}, {shape['num_attention_heads']} heads"
        )
    layers = chosen.figures["layers"] or [{}] * shape["num_hidden_layers"]
    attending = sum(one.get("attention", True) for one in layers)
    sizes = [one.get("intermediate_size", shape["intermediate_size"]) for one in layers]
    mean = sum(sizes) / len(sizes)
    fewer = sum("num_key_value_heads" in one for one in layers)
    heads = f" ({fewer} with fewer heads)" if fewer else ""
    return (
        f"{attending} of {len(layers)} attend{heads}, MLP {min(sizes)} to {max(sizes)} "
        f"(mean {mean:.0f})"
    )


if __name__ == "__main__":
    raise SystemExit(main())
