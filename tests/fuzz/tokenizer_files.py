"""tokenizer.json: fields and bytes changed; what opens encodes as the library itself does."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import tokenizers

from edgelm.runtime.text.tokenizer import Detokenizer, Tokenizer
from tests.checkpoints.tiny_chat import tiny_tokenizer
from tests.fuzz.bytewise import mutate_bytes
from tests.fuzz.kind import Case, Kind, Opened
from tests.fuzz.outcome import Wrong
from tests.fuzz.strange import dump, mutate, paths

Tree = dict[str, Any]
_TEXTS = (
    "The miller waits until the level outside has dropped.",
    "<s>user: Why?<|end|> é 🦙 \u4f60\u597d \x00 \r\n  two",
    "a" * 2000,
)
_TRUNCATION = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
_PADDING = {
    "strategy": {"Fixed": 96},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<pad>",
}
_NORMALIZERS: tuple[Any, ...] = (
    *({"type": kind} for kind in ("NFC", "NFKD", "Lowercase", "StripAccents", "Nmt", "Unknown")),
    {"type": "Prepend", "prepend": "x" * 1000},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 3000},
    {"type": "Replace", "pattern": {"String": ""}, "content": "bb"},
    {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"},
    {"type": "Replace", "pattern": {"Regex": "(((((a*)*)*)*)*)*b"}, "content": "b"},
    {"type": "Replace", "pattern": {"Regex": "("}, "content": "b"},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAAAAA=="},
    {"type": "Precompiled", "precompiled_charsmap": ""},
    {"type": "BertNormalizer", "clean_text": True, "lowercase": None},
)
_PRE_TOKENIZERS: tuple[Any, ...] = (
    *({"type": kind} for kind in ("Whitespace", "BertPreTokenizer", "UnicodeScripts")),
    {"type": "Digits", "individual_digits": True},
    {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"Regex": "(?="}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "FixedLength", "length": 0},
)
_POST_PROCESSORS: tuple[Any, ...] = (
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
    {
        "type": "TemplateProcessing",
        "pair": [],
        "single": [{"Sequence": {"id": "A"}}] * 2,
        "special_tokens": {},
    },
    {
        "type": "TemplateProcessing",
        "pair": [],
        "special_tokens": {},
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}],
    },
    {"type": "BertProcessing", "sep": ["</s>", 2**31], "cls": ["<s>", 10**9]},
    {"type": "RobertaProcessing", "sep": ["x", 1], "cls": ["y", 2], "trim_offsets": True},
)


class TokenizerFiles(Kind):
    """Ids and texts are those of `tokenizers`, without truncation and padding."""

    name = "tokenizer"

    def prepare(self, folder: Path) -> None:
        self.tree = json.loads(tiny_tokenizer().to_str())
        self.text = json.dumps(self.tree).encode()

    def make(self, rng: Random, folder: Path) -> Case:
        path = folder / "tokenizer.json"
        if rng.random() < 0.2:
            data, note = mutate_bytes(rng, self.text, within=rng.choice((400, None)))
            path.write_bytes(data)
            return Case(note)
        tree = json.loads(self.text)
        notes = []
        for _ in range(rng.choice((1, 1, 2))):
            change = rng.choice((_field, _field, _vocabulary, _part, _part, _limits))
            notes.append(change(rng, tree))
        data, odd = dump(rng, tree)
        path.write_bytes(data)
        return Case("; ".join([*notes, odd]))

    def check(self, folder: Path, case: Case, reference: Callable[[], None]) -> Opened:
        path = folder / "tokenizer.json"
        ours = Tokenizer(path)
        ids = [ours.encode(text).tolist() for text in _TEXTS]
        texts = [ours.decode(list(tokens)) for tokens in ids]
        texts += [_streamed(ours, tokens) for tokens in ids]
        ours.token(3)
        reference()
        theirs = tokenizers.Tokenizer.from_file(str(path))
        theirs.no_truncation()
        theirs.no_padding()
        if ids != [theirs.encode(text).ids for text in _TEXTS]:
            raise Wrong("token ids differ from those of the library")
        if texts[:3] != [theirs.decode(tokens, skip_special_tokens=True) for tokens in ids]:
            raise Wrong("texts differ from those of the library")
        return "equal"


_LISTS = (("model", "vocab"), ("model", "merges"))


def _streamed(tokenizer: Tokenizer, tokens: list[int]) -> str:
    detokenizer = Detokenizer(tokenizer)
    return "".join(map(detokenizer.push, tokens[:200])) + detokenizer.flush()


def _field(rng: Random, tree: Tree) -> str:
    """Any field but the vocabulary's."""
    among = [p for p in paths(tree) if p[:2] not in _LISTS or len(p) < 3]
    return mutate(rng, tree, among=among)


def _vocabulary(rng: Random, tree: Tree) -> str:
    model = tree.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        return _field(rng, tree)
    return mutate(rng, model)


def _part(rng: Random, tree: Tree) -> str:
    """A normalizer, a pre-tokenizer or a post-processor of another kind, some of them bombs."""
    name, choices = rng.choice(
        (
            ("normalizer", _NORMALIZERS),
            ("pre_tokenizer", _PRE_TOKENIZERS),
            ("post_processor", _POST_PROCESSORS),
        )
    )
    part = rng.choice(choices)
    if rng.random() < 0.2:
        several = rng.choice((2, 8))
        field = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}
        part = {"type": "Sequence", field.get(name, "processors"): [part] * several}
    tree[name] = part
    return f"{name} is {str(part)[:80]}"


def _limits(rng: Random, tree: Tree) -> str:
    """Truncation and padding that the file keeps, of all sizes."""
    size = rng.choice((0, 1, 8, 96, 4096, 10**6, 10**9, 2**63, -1))
    if rng.random() < 0.5:
        tree["truncation"] = {**_TRUNCATION, "max_length": size}
        return f"truncation to {size}"
    multiple = rng.choice((None, None, 10**9))
    tree["padding"] = {**_PADDING, "strategy": {"Fixed": size}, "pad_to_multiple_of": multiple}
    return f"padding to {size}, a multiple of {multiple}"
