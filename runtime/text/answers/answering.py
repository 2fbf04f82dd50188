"""How one model answers messages: the parser of its answers, and the format that they must have."""

from collections.abc import Callable
from functools import partial

from edgelm.errors import BadInput
from edgelm.runtime.generation.sampling.logits_processor import Constraint
from edgelm.runtime.text.answers.calls.call_grammars import call_rules
from edgelm.runtime.text.answers.formats import answer_format
from edgelm.runtime.text.answers.parser import AnswerParser, starts_reasoning
from edgelm.runtime.text.answers.reasoning_limit import (
    ReasoningLimit,
    ReasoningRules,
    control_tokens,
)
from edgelm.runtime.text.answers.rule_writer import RuleWriter
from edgelm.runtime.text.answers.tool_choice import ToolChoice
from edgelm.runtime.text.grammar.compiler import GrammarCompiler
from edgelm.runtime.text.grammar.response_format import ResponseFormat
from edgelm.runtime.text.tokenizer import Detokenizer, Tokenizer

ConstraintMaker = Callable[[], Constraint]


class Answering:
    """The answers of one model.

    Args:
        template: the text of its chat template, from which its family is known.
        tokenizer: of the model.
        grammars: compiles constraints.
        eos_token_ids: tokens that end an answer.
    """

    def __init__(
        self,
        template: str,
        tokenizer: Tokenizer,
        grammars: GrammarCompiler,
        eos_token_ids: frozenset[int],
    ) -> None:
        self.format = answer_format(template)
        self._tokenizer = tokenizer
        self._grammars = grammars
        self._eos = eos_token_ids
        self._control = control_tokens(tokenizer)
        self.shown = {
            number: text
            for text, number in self._control.items()
            if number not in eos_token_ids and self.format.shows(text)
        }

    def parser(self, tools: ToolChoice, prompt: str) -> Callable[[], AnswerParser] | None:
        """The parser of an answer; None where it can only have content.

        Args:
            tools: what may be called.
            prompt: its end; the template may have begun the reasoning.
        """
        if not tools.tools and self.format.reasoning is None and not self.format.hidden:
            return None
        single = bool(tools.tools) and not tools.parallel
        return partial(AnswerParser, self.format, tools.tools, prompt, single_call=single)

    def constraint(
        self,
        tools: ToolChoice,
        response_format: ResponseFormat | None,
        budget: int | None,
        prompt: str,
    ) -> ConstraintMaker | None:
        """What an answer is held to; None for nothing.

        Raises:
            BadInput: a format, tools or a budget that cannot be enforced.
            MissingPackage: the package for grammars is not installed.
        """
        then = self._grammar(tools, response_format)
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int)):
            raise BadInput(f"reasoning_budget is {str(budget)[:80]}, expected an integer or None")
        if budget is not None and budget < 0:
            raise BadInput(f"reasoning_budget is {budget}, expected at least 0")
        rules = self._reasoning_rules(content=not tools.required)
        if rules is None or (then is None and budget is None):
            return then
        return lambda: ReasoningLimit(
            rules,
            Detokenizer(self._tokenizer, self.shown),
            thinking=starts_reasoning(self.format, prompt),
            budget=budget,
            then=then,
        )

    def _grammar(
        self, tools: ToolChoice, response_format: ResponseFormat | None
    ) -> ConstraintMaker | None:
        if tools.required:
            rules = self._call_rules(tools, RuleWriter(self._control))
            wanted: ResponseFormat | None = ResponseFormat("tool_calls", f"start: calls\n{rules}")
        elif response_format is not None and tools.tools:
            wanted = self._calls_or(tools, response_format)
        else:
            wanted = response_format
        if wanted is None:
            return None
        self._grammars.check(wanted)
        return partial(self._grammars.start, wanted)

    def _call_rules(self, tools: ToolChoice, writer: RuleWriter) -> str:
        return call_rules(self.format.name, tools.callable_tools, writer, parallel=tools.parallel)

    def _calls_or(self, tools: ToolChoice, response_format: ResponseFormat) -> ResponseFormat:
        """Calls, or a text of the format: the model decides."""
        if response_format.kind != "json_schema":
            raise BadInput(
                f"response_format of type {response_format.kind} cannot be combined with tools; "
                "use a JSON schema, or leave one of them out"
            )
        writer = RuleWriter(self._control)
        before = writer.literal(self.format.before_content)
        schema = writer.json(response_format.schema(), strict=response_format.strict)
        calls = self._call_rules(tools, writer)
        rules = f"start: calls | content\ncontent: {before} {schema}\n{calls}"
        return ResponseFormat("tool_calls", rules)

    def _reasoning_rules(self, *, content: bool) -> ReasoningRules | None:
        chosen = self.format
        if chosen.reasoning is None:
            return None
        begin = self._tokens(chosen.reasoning.begin)
        prefix = chosen.before_content if content else ""
        return ReasoningRules(
            begin=begin,
            end=self._tokens(chosen.reasoning.end),
            end_text=chosen.reasoning.end,
            eos=self._eos,
            optional=len(begin) == 1 or begin[0] in self._control.values(),
            always=bool(chosen.after_reasoning),
            direct=self._tokens(prefix),
            after=self._tokens(chosen.after_reasoning + prefix),
        )

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(int(token) for token in self._tokenizer.encode(text, special=False))
