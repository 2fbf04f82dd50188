"""Align a student: supervised fine-tuning (SFT) and preference optimization (DPO) through TRL.

The loss covers answers only. With a chat template that marks the assistant's tokens, a row is a
whole conversation; with any other template each of the assistant's messages is a row, after the
messages before it (exact, but the beginning is processed again for each).

TRL does the training; this file checks its input, restores the model after it, and resumes an
interrupted run from its last complete checkpoint. TRL's usage report, progress bars and printed
logs are switched off.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from edgelm.compress.alignment.data import Rows, make_rows
from edgelm.compress.alignment.metrics_callback import AlignStep, MetricsCallback
from edgelm.compress.alignment.run import AlignRun
from edgelm.compress.alignment.settings import Alignment, Dpo, Sft
from edgelm.compress.alignment.trl_cleanup import quiet, restored_after_training
from edgelm.compress.data.conversations import Example, read_demonstrations, read_preferences
from edgelm.compress.model import Model, Tokenizer, load_model
from edgelm.compress.run.distributed import world_size
from edgelm.compress.run.fingerprint import tokenizer_sha256, weights_sha256
from edgelm.compress.run.stop_signals import StopSignals
from edgelm.errors import BadInput, MissingPackage
from edgelm.files.hashing import file_sha256

_SHARDS = "pytorch_model_fsdp_0"  # of a checkpoint that FSDP2 wrote


@dataclass(frozen=True, slots=True)
class Aligned:
    """The result of an alignment.

    steps: optimizer steps; examples: rows trained on; loss: of the last step.
    truncated: examples cut at `max_length`; dropped: those whose prompt alone fills it.
    metrics: the JSONL file with one line per step.
    """

    steps: int
    examples: int
    truncated: int
    dropped: int
    loss: float
    metrics: Path


def align(
    model: Model,
    tokenizer: Tokenizer,
    request: Alignment,
    data: Path,
    out: Path,
    *,
    progress: Callable[[AlignStep], None] | None = None,
) -> Aligned:
    """Train a model in place on a JSONL file; an interrupted call resumes.

    The data is held in memory. For `Sft` lines hold `messages`, or `prompt` and `completion`; for
    `Dpo` they hold `prompt`, `chosen` and `rejected`, texts or lists of messages each.

    Args:
        model: in fp32, on the device to train on; the same as in the first call.
        tokenizer: its tokenizer; with a chat template, texts are read as messages.
        request: the method and its settings.
        data: the examples.
        out: folder of the run, with checkpoints (12 bytes per parameter, two of them) and metrics.
        progress: called after each step.

    Raises:
        MissingPackage: TRL is not installed.
        BadInput: examples of another form, settings out of range or other ones than the run was
            started with, a model that is not in fp32.
        Diverged: the loss is not finite; the last checkpoint remains.
    """
    _import_trl()
    request.check()
    _check_model(model, request)
    tokenizer = _with_ends(tokenizer, model)
    chat = bool(tokenizer.chat_template)
    rows = make_rows(
        _read(request, data, chat=chat),
        tokenizer,
        max_length=request.max_length,
        vocab_size=model.config.vocab_size,
    )
    run = AlignRun(out, _settings(request, model, tokenizer, data))
    training = model.training
    try:
        if run.is_finished():
            _load_weights(model, run)
        else:
            with quiet(), restored_after_training(model):
                _train(model, tokenizer, request, rows, run, progress)
    finally:
        model.train(training)
    last = run.rows()[-1]
    return Aligned(
        last["step"], len(rows.rows), rows.truncated, rows.dropped, last["loss"], run.metrics
    )


def _train(
    model: Model,
    tokenizer: Tokenizer,
    request: Alignment,
    rows: Rows,
    run: AlignRun,
    progress: Callable[[AlignStep], None] | None,
) -> None:
    from datasets import Dataset
    from transformers import PrinterCallback

    stop = StopSignals()
    callback = MetricsCallback(run, progress, stop)
    trainer = _trainer(request)(
        model=model,
        args=_arguments(model, request, rows, run),
        train_dataset=Dataset.from_list(rows.rows),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.remove_callback(PrinterCallback)
    if trainer.is_world_process_zero():
        run.tidy()
    trainer.accelerator.wait_for_everyone()
    latest = run.latest()
    with stop:
        trainer.train(resume_from_checkpoint=str(latest) if latest else None)
        if callback.stopping:
            stop.deliver()


def _trainer(request: Alignment) -> Any:
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.sft_trainer import SFTTrainer

    return DPOTrainer if isinstance(request, Dpo) else SFTTrainer


def _arguments(model: Model, request: Alignment, rows: Rows, run: AlignRun) -> Any:
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.sft_config import SFTConfig

    make: Any = SFTConfig
    method: dict[str, Any] = {"assistant_only_loss": rows.every_turn}
    if isinstance(request, Dpo):
        make, method = DPOConfig, {}
    on_gpu = model.device.type == "cuda"
    arguments = make(
        output_dir=str(run.checkpoints),
        **request.arguments(),
        **method,
        bf16=_uses_bf16(request, on_gpu=on_gpu),
        use_cpu=model.device.type == "cpu",
        dataloader_pin_memory=on_gpu,
        save_strategy="steps",
        # The filter would report the last finite loss in place of a NaN.
        logging_nan_inf_filter=False,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    )
    if arguments.n_gpu > 1:
        raise BadInput(
            f"{arguments.n_gpu} GPUs are visible to one process; set CUDA_VISIBLE_DEVICES=0 to "
            "use one, or start with `accelerate launch` to use all"
        )
    return arguments


def _uses_bf16(request: Alignment, *, on_gpu: bool) -> bool:
    if request.precision == "auto":
        return on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return request.precision == "bf16"


def _read(request: Alignment, data: Path, *, chat: bool) -> list[Example]:
    reader = read_preferences if isinstance(request, Dpo) else read_demonstrations
    return reader(data, chat=chat)


def _check_model(model: Model, request: Alignment) -> None:
    if not isinstance(request, Sft | Dpo):
        raise BadInput(f"{type(request).__name__} is not an alignment method; expected Sft or Dpo")
    types = {parameter.dtype for parameter in model.parameters()} - {torch.float32}
    if types:
        raise BadInput(
            f"the model is in {str(types.pop()).removeprefix('torch.')}, where small updates "
            "vanish; load it in float32, and set `precision` for the products"
        )
    context = model.config.max_position_embeddings
    if request.max_length > context:
        raise BadInput(
            f"max_length is {request.max_length}, the model's context is {context} tokens; lower it"
        )


def _with_ends(tokenizer: Tokenizer, model: Model) -> Tokenizer:
    """A copy with an end-of-sequence token and a padding token."""
    tokenizer = copy.deepcopy(tokenizer)
    if tokenizer.eos_token is None:
        end = model.config.eos_token_id
        end = end[0] if isinstance(end, list) else end
        if end is None:
            raise BadInput(
                "neither the tokenizer nor config.json defines an end-of-sequence token; set "
                "eos_token in tokenizer_config.json"
            )
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked, so any token will do
    return tokenizer


def _settings(request: Alignment, model: Model, tokenizer: Tokenizer, data: Path) -> dict[str, Any]:
    return {
        **request.record(),
        # Of all processes: a run may be resumed by another number of them.
        "batch_size": request.batch_size * world_size(),
        "data": file_sha256(data),
        "weights": weights_sha256(model),
        "tokenizer": tokenizer_sha256(tokenizer),
    }


def _load_weights(model: Model, run: AlignRun) -> None:
    latest = run.latest()
    assert latest is not None
    shards = latest / _SHARDS
    if not shards.is_dir():
        model.load_state_dict(load_model(latest).state_dict())
        return
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with TemporaryDirectory(dir=run.folder) as folder:
        whole = Path(folder) / "weights.pt"
        dcp_to_torch_save(shards, whole)
        state = torch.load(whole, weights_only=True)
    model.load_state_dict(state.get("model", state))


def _import_trl() -> None:
    try:
        import trl  # noqa: F401  later imports rely on it and on what it brings
    except ImportError:
        raise MissingPackage("alignment needs TRL: pip install 'edgelm[align]'") from None
