"""What a bundle computed where it was exported, for its self-test on the machine that runs it.

Beside the gate's sample, which has the source's probabilities, this is the exported graph's own:
a driver or a library that changes the numbers shows as a distance from it, however good the
quantization was.
"""

from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from edgelm.bundle import Manifest, bundle_file
from edgelm.bundle.records.gate_sample import GateSample
from edgelm.errors import BadBundle
from edgelm.files.bounded_read import read_bounded
from edgelm.reasons import reason

SELF_TEST = "self_test.json"
_MAX_BYTES = 64 << 20
_Tokens = tuple[Annotated[int, msgspec.Meta(ge=0, lt=1 << 24)], ...]


class RecordedAnswer(msgspec.Struct, frozen=True):
    """A greedy answer: to one message of the user, or the continuation of a text.

    `prompt_tokens` are what the tokenizer and the chat template made of the prompt, `tokens` the
    answer's, its end-of-turn token included; `ended` is false where a limit cut it.
    """

    prompt: str
    prompt_tokens: _Tokens
    tokens: _Tokens
    ended: bool


class SelfTestRecord(msgspec.Struct, frozen=True):
    """The graph's own figures on the gate's sample, and a few greedy answers.

    logprobs: fp16 log-probabilities [S, L, N] of the sample's `top_tokens`.
    top1: int32, the graph's likeliest next tokens [S, L].
    dequantized: whether the graph with fp32 weights was run, because the exporting machine has no
        kernels for the target's types.
    """

    engine: str
    engine_version: str
    machine: str
    logprobs: bytes
    top1: bytes
    answers: tuple[RecordedAnswer, ...]
    chat: bool
    dequantized: bool = False

    def arrays(self, sample: GateSample) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]:
        """`logprobs` [S, L, N] and `top1` [S, L].

        Raises:
            ValueError: they do not have the sample's shape.
        """
        logprobs = np.frombuffer(self.logprobs, np.float16).reshape(sample.top_tokens.shape)
        top1 = np.frombuffer(self.top1, np.int32).reshape(sample.tokens.shape)
        return logprobs.astype(np.float64), top1


def write_self_test(folder: Path, record: SelfTestRecord) -> None:
    """Write the record into a bundle."""
    (folder / SELF_TEST).write_bytes(msgspec.json.encode(record) + b"\n")


def read_self_test(folder: Path, manifest: Manifest) -> SelfTestRecord | None:
    """The record of a bundle, if its manifest lists one.

    Raises:
        BadBundle: the file is damaged.
    """
    path = bundle_file(folder, manifest, SELF_TEST)
    if path is None:
        return None
    try:
        record = msgspec.json.decode(read_bounded(path, at_most=_MAX_BYTES), type=SelfTestRecord)
        _check(record, manifest)
    except (OSError, ValueError, RecursionError) as error:
        raise BadBundle(
            f"{path} is damaged ({reason(error)}); copy or export the bundle again"
        ) from None
    return record


def _check(record: SelfTestRecord, manifest: Manifest) -> None:
    for answer in record.answers:
        ids = (*answer.prompt_tokens, *answer.tokens)
        if not answer.prompt_tokens or max(ids) >= manifest.spec.vocab_size:
            raise ValueError("an answer's tokens are not of this model's vocabulary")
