"""How much of a mixture's quantization error comes from experts that it chooses otherwise.

    python -m bench.studies.quantization.router_ties train.jsonl.gz --train FOLDER  # a mixture
    python -m bench.studies.quantization.router_ties gate.jsonl CHECKPOINT...

A router's logits change a little where anything before it is rounded; where the last chosen expert
and the first other one are nearly tied, another expert is chosen. Every checkpoint is exported in
its own precision (`source`) or in int8, without an 8-bit cache, and its graph runs three times: as
it is; with the source's choice of experts; and with its matrices multiplied in fp32 in place of
int8 arithmetic, which leaves the error of the weights (and that of QMoE, which has no such mode).
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from tokenizers import Tokenizer

from edgelm.bundle.records.gates import Figures
from edgelm.checkpoint.source import Checkpoint, open_checkpoint
from edgelm.compress.model import load_tokenizer
from edgelm.devices.kernels import KERNELS
from edgelm.export.gate.divergence import Distance
from edgelm.export.graph.write import GraphFormat, write_graph
from edgelm.export.precision.legalize import Assignment, legalize
from edgelm.export.precision.source import assign_source
from edgelm.export.quantize.quantizer import Quantizer
from edgelm.export.quantize.weights import Weights
from edgelm.export.source.reference import Reference
from edgelm.export.source.text import read_documents, read_passage
from edgelm.quantize.precision import PRECISIONS, Fp32

LENGTH, ROWS = 64, 64  # of the sequences, which are run from their start
_NOT_CHOSEN = -1e4
_FLOAT = onnx.TensorProto.FLOAT
_TITLES = """
| model | as exported | with the source's experts | in fp32 | other experts | margin there / all |
|---|---|---|---|---:|---:|"""


class Arm(NamedTuple):
    """What one run of a graph gave: its distance from the source, and its routers' logits."""

    distance: Distance
    logits: list[torch.Tensor]


class Ties(NamedTuple):
    """A row of the table.

    changed: the share of tokens with other experts in some layer.
    tie: the median margin between the last chosen expert and the next one where they first differ.
    margin: that of all tokens and layers.
    """

    exported: Figures
    steered: Figures
    exact: Figures
    changed: float
    tie: float
    margin: float

    def __str__(self) -> str:
        arms = (self.exported, self.steered, self.exact)
        figures = " | ".join(f"KL {one.kl:.4f}, {one.top1:.1%}" for one in arms)
        return f"{figures} | {self.changed:.1%} | {self.tie:.3f} / {self.margin:.3f}"


def measure(checkpoint: Checkpoint, tokens: torch.Tensor) -> Ties:
    """Compare a checkpoint's graph with it; `tokens` [sequences, length] start at position 0."""
    kernels, weights = KERNELS["onnxruntime"], Weights(checkpoint)
    columns = {group: weights.columns(group) for group in weights.groups()}
    assignment: Assignment = dict.fromkeys(columns, PRECISIONS["int8"])
    if checkpoint.packed:
        names = ("fp32", "int8", "int4")
        assignment = dict(assign_source(checkpoint, kernels, names, Fp32()).assignment)
    reference = Reference(checkpoint)
    theirs = _record_routers(reference)
    hidden = reference.hidden_states(tokens)
    top_k = [mixture.top_k for mixture in checkpoint.spec.mixtures]
    with TemporaryDirectory() as place:
        folder = Path(place)
        form = GraphFormat("ort", "fp32", "fp32", max(LENGTH, tokens.shape[1]))
        write_graph(folder, Quantizer(weights), legalize(assignment, columns, kernels), form)
        run = _Runner(folder, reference, tokens, hidden)
        plain = run(None, accuracy=4)
        masks = [_mask(one, k) for one, k in zip(theirs, top_k, strict=True)]
        steered, exact = run(masks, accuracy=4), run(None, accuracy=0)
    exported, chosen, fp32 = (one.distance.figures() for one in (plain, steered, exact))
    changed, tie, margin = _changes(theirs, plain.logits, top_k)
    return Ties(exported, chosen, fp32, changed, tie, margin)


class _Runner:
    def __init__(
        self, folder: Path, reference: Reference, tokens: torch.Tensor, hidden: torch.Tensor
    ) -> None:
        self.folder = folder
        self.reference = reference
        self.tokens = tokens
        self.hidden = hidden

    def __call__(self, masks: list[torch.Tensor] | None, *, accuracy: int) -> Arm:
        """Run the graph; `masks` [tokens, experts] are added to what routers choose by."""
        graph = onnx.load(self.folder / "model.onnx", load_external_data=False)
        routers = _expose_routers(graph, masked=masks is not None)
        for node in graph.graph.node:
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    attribute.i = accuracy
        path = self.folder / "arm.onnx"
        onnx.save(graph, path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options)
        names = {one.name for one in session.get_inputs()}
        past = {
            one.name: np.zeros([_size(size) for size in one.shape], np.float32)
            for one in session.get_inputs()
            if one.name.startswith("past.")
        }
        distance, found = Distance(), list[list[Any]]()
        head, length = self.reference.head(), self.tokens.shape[1]
        for row, (tokens, hidden) in enumerate(zip(self.tokens, self.hidden, strict=True)):
            feed = past | {
                "tokens": tokens[None].numpy(),
                "past_length": np.zeros(1, np.int64),
                "last_position": np.array([length - 1], np.int32),
                "total_length": np.array(length, np.int32),
                "logits_positions": np.arange(length),
            }
            for layer, mask in enumerate(masks or ()):
                feed[f"choice.{layer}"] = mask[row * length : (row + 1) * length].numpy()
            given = {name: one for name, one in feed.items() if name in names}
            logits, *chosen = session.run(["logits", *routers], given)
            source = self.reference.logits(hidden, head)
            distance.add(source, torch.from_numpy(logits[0]), tokens[1:])
            found.append(chosen)
        stacked = [torch.from_numpy(np.concatenate(one)) for one in zip(*found, strict=True)]
        return Arm(distance, stacked)


def _size(size: int | str) -> int:
    return 1 if size == "B" else LENGTH if isinstance(size, str) else size


def _expose_routers(graph: Any, *, masked: bool) -> list[str]:
    """Declare what routers choose by as outputs; with `masked`, add inputs `choice.N` to it."""
    routers, nodes = list[str](), []
    for node in graph.graph.node:
        if node.op_type in ("QMoE", "MoE"):
            name = node.input[1]
            graph.graph.output.append(onnx.helper.make_tensor_value_info(name, _FLOAT, None))
            if masked:
                choice, chosen = f"choice.{len(routers)}", f"{name}.chosen"
                graph.graph.input.append(onnx.helper.make_tensor_value_info(choice, _FLOAT, None))
                nodes.append(onnx.helper.make_node("Add", [name, choice], [chosen]))
                node.input[1] = chosen
            routers.append(name)
        nodes.append(node)
    graph.graph.ClearField("node")
    graph.graph.node.extend(nodes)
    return routers


def _record_routers(reference: Reference) -> list[torch.Tensor]:
    """A list that the source's run fills with each layer's router logits [tokens, experts]."""
    found: list[torch.Tensor] = []
    for name, module in reference.model.named_modules():
        if name.endswith(("mlp.gate", "mlp.router")):
            module.register_forward_hook(
                lambda _, __, output: found.append(output[0].flatten(0, -2))
            )
    return found


def _mask(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    chosen = logits.topk(top_k, -1).indices
    return torch.full_like(logits, _NOT_CHOSEN).scatter(-1, chosen, 0.0)


def _changes(
    theirs: Sequence[torch.Tensor], ours: Sequence[torch.Tensor], top_k: Sequence[int]
) -> tuple[float, float, float]:
    """Share of tokens with other experts in some layer, median margin there and of all tokens."""
    same = torch.ones(len(theirs[0]), dtype=torch.bool)
    ties, margins = [], []
    for source, graph, count in zip(theirs, ours, top_k, strict=True):
        ranked = source.sort(-1, descending=True).values
        margin = ranked[:, count - 1] - ranked[:, count]
        masks = (_mask(one, count) for one in (source, graph))
        equal = torch.eq(*masks).all(-1)
        ties.append(margin[same & ~equal])  # the first layer that differs
        margins.append(margin)
        same &= equal
    tied, every = torch.cat(ties), torch.cat(margins)
    return 1 - float(same.float().mean()), float(tied.median()), float(every.median())


def train(text: Path, folder: Path, *, minutes: float) -> None:
    """Train a small Qwen3-MoE, 16 experts of which 4 are chosen, and save it with its tokenizer."""
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM

    documents = read_documents(text)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2048, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokens = torch.tensor(tokenizer.encode("\n\n".join(documents)).ids)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen3_moe",
        vocab_size=2048,
        hidden_size=128,
        num_hidden_layers=4,
        head_dim=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=16,
        num_experts_per_tok=4,
        moe_intermediate_size=128,
        norm_topk_prob=True,
        output_router_logits=True,
        router_aux_loss_coef=0.01,
        eos_token_id=0,
        max_position_embeddings=512,
        bos_token_id=None,
        pad_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    started, step, share = time.monotonic(), 0, 0.0
    while share < 1:
        share = (time.monotonic() - started) / (60 * minutes)
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 50) * max(0.02, 1 - share)
        starts = torch.randint(len(tokens) - 128, (16,))
        batch = torch.stack([tokens[at : at + 128] for at in starts])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 100 == 0:
            print(f"step {step}, loss {loss:.2f}", flush=True)
    model.config.output_router_logits = False
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))


def main() -> None:
    """Print the table, or train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="*")
    parser.add_argument("--train", type=Path, metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=6.0)
    arguments = parser.parse_args()
    if arguments.train is not None:
        train(arguments.text, arguments.train, minutes=arguments.minutes)
        return
    print(_TITLES)
    for path in arguments.checkpoints:
        checkpoint = open_checkpoint(path)
        passage = read_passage(
            arguments.text,
            load_tokenizer(checkpoint).backend_tokenizer,
            vocab_size=checkpoint.spec.vocab_size,
            context=LENGTH,
            sequences=ROWS,
        )
        print(f"| {path.name} | {measure(checkpoint, passage.tokens)} |", flush=True)


if __name__ == "__main__":
    main()
