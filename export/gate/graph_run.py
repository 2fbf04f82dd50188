"""One run of an exported graph: its figures, its behavior, and its self-test record."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime

from edgelm.bundle import FileEntry, Manifest, bundle_file
from edgelm.bundle.records.behavior import Behavior
from edgelm.bundle.records.gate_sample import GateSample, sequence_predictions
from edgelm.bundle.records.gates import Figures
from edgelm.bundle.records.self_test import RecordedAnswer, SelfTestRecord
from edgelm.errors import BadInput
from edgelm.export.gate import prompts as asked
from edgelm.export.gate.answers import SampledAnswer, bundle_answers, sampling_of
from edgelm.export.gate.source_answers import can_sample, source_answers
from edgelm.export.gate.traits import compare_behavior
from edgelm.export.source.reference import Reference
from edgelm.export.work.cache import ArtifactCache, key
from edgelm.runtime.generation.generation_config import GENERATION_CONFIG, read_generation_config
from edgelm.runtime.generation.options import GREEDY, Options
from edgelm.runtime.generation.sampling.settings import Sampling
from edgelm.runtime.model import LanguageModel
from edgelm.runtime.self_test import processor, prompt_tokens
from edgelm.runtime.text.bundle_template import CHAT_TEMPLATE

_RECORDED = 4  # answers of the self-test, two of them short
_MIN_PROMPTS = 2
_TEXT_FILES = ("tokenizer.json", CHAT_TEMPLATE, GENERATION_CONFIG, "special_tokens_map.json")
_MARK = "Zebra"  # an assistant's answer that no template contains


class GraphRun(msgspec.Struct, frozen=True):
    """What one graph gave. Behavior and record are None where the figures failed the gate."""

    figures: Figures
    behavior: Behavior | None = None
    self_test: SelfTestRecord | None = None


def listing_text_files(draft: Manifest, folder: Path) -> Manifest:
    """A manifest that lists the text files of an unfinished bundle, for LanguageModel."""
    entries = {
        name: FileEntry((folder / name).stat().st_size, "")
        for name in _TEXT_FILES
        if (folder / name).is_file()
    }
    return msgspec.structs.replace(draft, files=entries)


def measure_behavior(
    model: LanguageModel,
    reference: Reference,
    cache: ArtifactCache,
    progress: Callable[[str], None],
) -> Behavior | None:
    """Sampled answers of the source and of the graph; None where the source cannot be sampled.

    That is a source whose weights do not fit in memory (each token would read all of them), or
    prompts that do not fit in the context.
    """
    chat = _is_chat(model)
    prompts = [prompt_tokens(model, text, chat) for text in asked.PROMPTS]
    prompts = [ids for ids in prompts if len(ids) + asked.MAX_TOKENS <= model.context]
    if len(prompts) < _MIN_PROMPTS:
        progress("behavior not measured: the prompts do not fit in the context")
        return None
    if not can_sample(reference):
        progress("behavior not measured: the source's weights do not fit in memory")
        return None
    path = bundle_file(model.folder, model.manifest, GENERATION_CONFIG)
    sampling = sampling_of(read_generation_config(path).values, model.session.vocab_size)
    ends = model.eos_token_ids | turn_end(model)
    pair = _Pair(model, reference, cache, sampling, ends)

    def decode(tokens: Sequence[int]) -> str:
        return model.tokenizer.decode(list(tokens))

    source, bundle = list[SampledAnswer](), list[SampledAnswer]()
    for part in (prompts[: asked.FIRST], prompts[asked.FIRST :]):
        progress(f"sampling {len(part)} answers of the source and of the graph")
        theirs, ours = pair.answers(part, first=len(source))
        source, bundle = source + theirs, bundle + ours
        found = compare_behavior(source, bundle, decode, sampling.temperature)
        if found.is_decided(len(prompts) - len(source)):
            break
    return found


@dataclass(frozen=True)
class _Pair:
    """A graph and its source, sampled alike; answers of the source are stored."""

    model: LanguageModel
    reference: Reference
    cache: ArtifactCache
    sampling: Sampling
    ends: frozenset[int]

    def answers(
        self, prompts: Sequence[Sequence[int]], first: int
    ) -> tuple[list[SampledAnswer], list[SampledAnswer]]:
        """Answers of the source and of the graph; `first` is the number of the first prompt."""
        sampling = self.sampling
        name = (
            f"coupled answers {key(prompts, sampling.temperature, sampling.top_p)} "
            f"{key(sorted(self.ends), first)}"
        )
        source = self.cache.load_record(name, list[SampledAnswer])
        if source is None:
            source = source_answers(self.reference, prompts, sampling, self.ends, first)
            self.cache.save_record(name, source)
        return source, bundle_answers(self.model, prompts, sampling, source, first)


def turn_end(model: LanguageModel) -> frozenset[int]:
    """The control token that the chat template writes behind an answer, whatever the files say.

    It is found in a rendered conversation, so that an end-of-turn token that is missing in the
    generation config shows in the bundle's behavior.
    """
    if not _is_chat(model):
        return frozenset()
    turns = (("user", "Hi"), ("assistant", _MARK), ("user", "Hi"))
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        tokens = model.chat_tokens(messages)  # type: ignore[arg-type]
    except BadInput:  # a template with its own ideas of a conversation
        return frozenset()
    text = model.tokenizer.decode([int(token) for token in tokens], special=True)
    rest = text.rpartition(_MARK)[2].lstrip()
    found = [
        (len(token.content), number)
        for number, token in model.tokenizer.added_tokens().items()
        if token.special and rest.startswith(token.content)
    ]
    return frozenset({max(found)[1]}) if found else frozenset()


def record_self_test(
    model: LanguageModel, sample: GateSample, *, dequantized: bool
) -> SelfTestRecord:
    """What the graph computes on the gate's sample, and its first greedy answers."""
    logprobs, top1 = [], []
    for number, tokens in enumerate(sample.tokens):
        found = sequence_predictions(model.session, tokens, sample.top_tokens[number])
        logprobs.append(found.logprobs.astype(np.float16))
        top1.append(found.top1.astype(np.int32))
    chat = _is_chat(model)
    texts = (*asked.PROMPTS[: _RECORDED // 2], *asked.PROMPTS[-_RECORDED // 2 :])
    answers = [_recorded(model, text, chat) for text in dict.fromkeys(texts)]
    return SelfTestRecord(
        engine="onnxruntime",
        engine_version=onnxruntime.__version__,
        machine=processor(),
        logprobs=np.stack(logprobs).tobytes(),
        top1=np.stack(top1).tobytes(),
        answers=tuple(answer for answer in answers if answer is not None),
        chat=chat,
        dequantized=dequantized,
    )


def _recorded(model: LanguageModel, text: str, chat: bool) -> RecordedAnswer | None:
    """A greedy answer; None where the prompt does not fit."""
    prompt = prompt_tokens(model, text, chat)
    if len(prompt) + asked.MAX_TOKENS > model.context:
        return None
    reply = model.generate(prompt, **Options(**GREEDY, max_tokens=asked.MAX_TOKENS))
    ended = reply.stop_reason == "eos_token"
    return RecordedAnswer(text, tuple(prompt), tuple(reply.tokens), ended)


def _is_chat(model: LanguageModel) -> bool:
    """Whether the bundle has a chat template that takes a single message of the user."""
    if bundle_file(model.folder, model.manifest, CHAT_TEMPLATE) is None:
        return False
    try:
        model.chat_tokens("Hi", enable_thinking=False)
    except BadInput:  # a template with its own ideas of a conversation
        return False
    return True
