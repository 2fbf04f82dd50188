"""An evaluation that several processes share: every process writes its scores.

python -m tests.compress.evaluation.backends.evaluate_processes FOLDER TASK...
"""

import json
import os
import sys
from pathlib import Path

import msgspec
import torch

from edgelm.compress.evaluation.evaluate import evaluate_items, score_of
from edgelm.compress.evaluation.task_names import parse_tasks
from edgelm.compress.evaluation.tasks.scores import Score
from edgelm.compress.model import load_model, load_tokenizer


def main() -> None:
    folder, *names = sys.argv[1:]
    scores = evaluated(Path(folder), names, shared=True)
    plain = {name: msgspec.to_builtins(score) for name, score in scores.items()}
    (Path(folder) / f"scores-{os.environ['RANK']}.json").write_text(json.dumps(plain))


def evaluated(folder: Path, names: list[str], *, shared: bool) -> dict[str, Score]:
    """Scores of `FOLDER/teacher` beside a noisy copy of itself."""
    torch.set_num_threads(1)
    teacher, model = load_model(folder / "teacher"), load_model(folder / "teacher")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    tokenizer = load_tokenizer(folder / "teacher")
    tasks = parse_tasks(names)
    found = evaluate_items(model, tokenizer, tasks, teacher=teacher, limit=7, shared=shared)
    return {name: score_of(one) for name, one in found.items()}


if __name__ == "__main__":
    main()
