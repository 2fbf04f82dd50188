"""Which channels LFM2's convolutions should keep when the residual stream loses some.

    python -m bench.studies.compress.short_convs

A small LFM2 is trained on bytes of this checkout's documentation and pruned to a narrower stream.
Each convolution keeps the channels that are most active (as edgelm does), those of the same indices
as the stream, or random ones; its output is only cut, or refitted by least squares. Printed is the
KL from the unpruned model on held-out bytes, in nats per token, without training.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from edgelm.bench.machine import describe_machine
from edgelm.cli import run_command
from edgelm.compress.model import Model, spec_of
from edgelm.compress.pruning.importance import Importance, score
from edgelm.compress.pruning.prune import prune
from edgelm.compress.pruning.refit import refitted_parts
from edgelm.compress.pruning.shape import Shape
from edgelm.errors import BadInput
from edgelm.quantize.hessians import Hessians

_LENGTH, _BATCH = 128, 16
_CALIBRATION_ROWS, _HELD_OUT_ROWS = 128, 64
_SIZES = {
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 384,
    "block_auto_adjust_ff_dim": False,
    "num_hidden_layers": 6,
    "layer_types": ["conv", "conv", "full_attention"] * 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}

Choice = Callable[[Importance, torch.Generator], torch.Tensor | None]
CHOICES: dict[str, Choice] = {
    "most active": lambda scores, _: scores.conv_channels,
    "as the stream": lambda scores, _: scores.channels.expand(len(scores.layers), -1),
    "random": lambda scores, generator: torch.rand(
        len(scores.layers), len(scores.channels), generator=generator
    ),
}


def text_rows(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes of all Markdown files, [rows, length]: to train on, and held out."""
    content = b"\n".join(path.read_bytes() for path in sorted(folder.rglob("*.md")))
    tokens = torch.tensor(list(content))
    if len(tokens) < _LENGTH * 2 * _HELD_OUT_ROWS:
        raise BadInput(
            f"{folder} has {len(tokens):,} bytes of Markdown files, expected at least "
            f"{_LENGTH * 2 * _HELD_OUT_ROWS:,}; give another folder with --text"
        )
    rows = tokens[: len(tokens) // _LENGTH * _LENGTH].view(-1, _LENGTH)
    held_out = torch.zeros(len(rows), dtype=torch.bool)
    held_out[:: max(1, len(rows) // _HELD_OUT_ROWS)] = True
    return rows[~held_out], rows[held_out]


def trained(rows: torch.Tensor, steps: int, seed: int) -> Model:
    """A small LFM2 after `steps` of AdamW."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model("lfm2", **_SIZES)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        batch = rows[torch.randint(len(rows), (_BATCH,))]
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.inference_mode()
def divergence(student: Model, teacher: Model, rows: torch.Tensor) -> float:
    """KL from the teacher, nats per token."""
    ours, theirs = (
        one(input_ids=rows, use_cache=False).logits.log_softmax(-1) for one in (student, teacher)
    )
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


def compare(
    teacher: Model, rows: torch.Tensor, held_out: torch.Tensor, hidden_size: int, seed: int
) -> dict[str, tuple[float, float]]:
    """KL of each choice of channels: only cut, and refitted."""
    generator, spec = torch.Generator().manual_seed(seed), spec_of(teacher)
    calibration = rows[torch.randperm(len(rows), generator=generator)[:_CALIBRATION_ROWS]]
    scores = score(teacher, calibration.split(_BATCH))
    shape = msgspec.structs.replace(Shape.from_spec(spec), hidden_size=hidden_size)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        moments = Hessians(Path(folder), spec, parts=refitted_parts(spec))
        with torch.inference_mode(), moments.watching(teacher):
            teacher.base_model(input_ids=calibration, use_cache=False)
        for name, choose in CHOICES.items():
            chosen = dataclasses.replace(scores, conv_channels=choose(scores, generator))
            students = (prune(teacher, shape, chosen, moments=one) for one in (None, moments))
            cut, refitted = (divergence(student, teacher, held_out) for student in students)
            found[name] = cut, refitted
    return found


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, default=Path("docs"), help="folder of Markdown files")
    parser.add_argument("--steps", type=int, default=600, help="of training (default: 600)")
    parser.add_argument("--hidden-sizes", type=int, nargs="+", default=[112, 96])
    parser.add_argument("--seeds", type=int, default=2, help="teachers (default: 2)")
    options = parser.parse_args()
    return run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    rows, held_out = text_rows(options.text)
    machine = describe_machine(torch.get_num_threads())
    print(
        f"{machine.cpu}, {machine.threads} threads, {machine.system}, Python {machine.python}, "
        f"torch {torch.__version__}"
    )
    for seed in range(options.seeds):
        teacher = trained(rows, options.steps, seed)
        with torch.inference_mode():
            loss = float(teacher(input_ids=held_out, labels=held_out, use_cache=False).loss)
        print(f"teacher {seed}: {loss:.3f} nats per byte on held-out text", flush=True)
        for size in options.hidden_sizes:
            for name, (cut, refitted) in compare(teacher, rows, held_out, size, seed).items():
                print(
                    f"  hidden {size}, {name}: cut {cut:.3f}, refitted {refitted:.3f}", flush=True
                )


if __name__ == "__main__":
    raise SystemExit(main())
