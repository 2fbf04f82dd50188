"""Grammars compiled for a model's vocabulary, by llguidance (github.com/guidance-ai/llguidance).

The package is an extra, and the tables of a vocabulary of 150,000 tokens take a second: both are
loaded when the first grammar is used. Compiled grammars are cached, since an application repeats
its few schemas.
"""

import importlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import tokenizers

from edgelm.errors import BadInput, MissingPackage
from edgelm.reasons import one_line, reason
from edgelm.runtime.text.grammar.response_format import ResponseFormat
from edgelm.runtime.text.grammar.token_mask import TokenMask
from edgelm.runtime.text.grammar.trial import LIMITS, why_not

log = logging.getLogger(__name__)

_CACHED = 32
# A small model that may add white space without end does so.
_WHITE_SPACE = r"\x20|\n[\x20\t]{0,40}"
_NO_TOKEN = "<edgelm: no end of sequence>"
# Kind of a format: its name in errors, and what to do.
_ADVICE = {
    "json_schema": (
        "the JSON schema of response_format",
        "change the schema, or leave out `strict` to ignore what cannot be enforced",
    ),
    "regex": (
        "the regular expression of response_format",
        "look-around and back-references are not supported",
    ),
    "grammar": ("the grammar of response_format", "expected Lark's syntax, with a rule `start`"),
    "tool_calls": ("the schema of a tool's parameters", "change the schema, or its `strict`"),
}


class GrammarCompiler:
    """Compiles response formats for one model.

    Args:
        read_tokenizer: gives tokenizer.json's text; called once.
        vocab_size: of the model's logits.
        eos_token_ids: they end a text that is complete.
    """

    def __init__(
        self, read_tokenizer: Callable[[], str], vocab_size: int, eos_token_ids: Iterable[int]
    ) -> None:
        self._read_tokenizer = read_tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = sorted(eos_token_ids)
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._vocabulary: Any = None
        self._special: dict[str, int] = {}
        self._matchers: OrderedDict[ResponseFormat, Any] = OrderedDict()

    def check(self, response_format: ResponseFormat) -> None:
        """Compile a format, for its errors.

        Raises:
            BadInput: a format that cannot be used, or a tokenizer that cannot.
            MissingPackage: llguidance is not installed.
        """
        self._matcher(response_format)

    def start(self, response_format: ResponseFormat) -> TokenMask:
        """The mask of a text that begins; raises as `check`."""
        return TokenMask(self._matcher(response_format).deep_copy(), self._vocab_size)

    def _matcher(self, response_format: ResponseFormat) -> Any:
        with self._lock:
            if response_format in self._matchers:
                self._matchers.move_to_end(response_format)
                return self._matchers[response_format]
        matcher = self._compile(response_format)  # meanwhile others use what is compiled
        with self._lock:
            self._matchers[response_format] = matcher
            if len(self._matchers) > _CACHED:
                self._matchers.popitem(last=False)
        return matcher

    def _compile(self, response_format: ResponseFormat) -> Any:
        module = _llguidance()
        name, advice = _ADVICE[response_format.kind]
        with self._reading:
            if self._vocabulary is None:
                self._vocabulary = self._read_vocabulary(module)
        try:
            grammar = _grammar_text(module, response_format)
        except ValueError as error:
            raise BadInput(f"{name} cannot be used: {reason(error)}; {advice}") from None
        if problem := why_not(module, grammar, self._special, self._vocab_size):
            raise BadInput(f"{name} cannot be used: {problem}; simplify it")
        limits = module.LLParserLimits(**LIMITS)
        matcher = module.LLMatcher(self._vocabulary, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise BadInput(f"{name} cannot be used: {one_line(matcher.get_error())}; {advice}")
        for message in matcher.get_grammar_warnings():
            log.warning("%s is not enforced in full: %s", name, one_line(message))
        return matcher

    def _read_vocabulary(self, module: Any) -> Any:
        text = self._read_tokenizer()
        try:
            inner = tokenizers.Tokenizer.from_str(text)
            size = max(self._vocab_size, inner.get_vocab_size())
            eos = [token for token in self._eos_token_ids if token < size]  # others cannot come
            added = inner.get_added_tokens_decoder().items()
            self._special = {token.content: number for number, token in added if token.special}
            if not eos:  # llguidance needs one: a token that the logits do not have
                inner.add_special_tokens([_NO_TOKEN])
                text, eos = inner.to_str(), [inner.get_vocab_size() - 1]
                size = max(size, inner.get_vocab_size())
            return module.LLTokenizer(text, n_vocab=size, eos_token=eos)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # native code that may panic
            raise BadInput(
                "this model's tokenizer cannot be used for structured output, which needs one that "
                f"decodes bytes (byte-level BPE, or with byte fallback): {reason(error)}"
            ) from None


def _grammar_text(module: Any, response_format: ResponseFormat) -> str:
    """The grammar as llguidance reads it."""
    definition, matcher = response_format.definition, module.LLMatcher
    if response_format.kind == "json_schema":
        options = {"whitespace_pattern": _WHITE_SPACE, "lenient": not response_format.strict}
        return str(matcher.grammar_from_json_schema(definition, overrides=options))
    if response_format.kind == "regex":
        return str(matcher.grammar_from_regex(definition))
    return str(matcher.grammar_from_lark(definition))


def _llguidance() -> Any:
    try:
        return importlib.import_module("llguidance")
    except ImportError:
        raise MissingPackage(
            "response_format and tool_choice need llguidance, which is not installed: "
            'pip install "edgelm[structured]"'
        ) from None
