"""jinja2's sandbox, with the surface that transformers gives to chat templates, and a budget.

The sandbox keeps a template from the machine; the budget keeps it from running forever.
Operators, calls and filters are intercepted where jinja2 offers it; for the rest (loops,
comparisons, literals, `~`, what is printed) the parsed template is rewritten: each gets a filter
around it that counts.
"""

import functools
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, NoReturn, cast

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

from edgelm.runtime.text.template_budget import Budget, OutOfBudget, current, is_stream
from edgelm.runtime.text.template_growth import (
    check_filter,
    check_format,
    check_method,
    check_operation,
)

_MAX_NODES = 25_000
# Names that no template can write.
_MADE, _TICK, _EMIT, _CONCAT = "edgelm made", "edgelm tick", "edgelm emit", "edgelm concat"
# They look at none of what they are given, or at one item.
_FREE = frozenset({"length", "count", "first", "last", "default", "d", "random"})


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Compiles chat templates; rendering needs a `Budget` in `current`."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[jinja2.ext.loopcontrols, _GenerationBlock],
            optimized=False,  # it would compute constants, unguarded, while compiling
            finalize=_printed,
        )
        self.globals.update(
            raise_exception=_raise,
            strftime_now=lambda form: datetime.now().strftime(form),
            dict=_Dict(),
            namespace=_Namespace,
        )
        self.globals.pop("lipsum")
        self.filters["tojson"] = _to_json
        self.filters = {name: _counted_filter(name, f) for name, f in self.filters.items()}
        self.tests = {name: _counted_test(cast(Any, f)) for name, f in self.tests.items()}
        self.filters |= {
            _MADE: lambda value: current.get().made(value),
            _TICK: _ticked,
            _EMIT: _emitted,
            _CONCAT: _concatenated,
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        if sum(1 for _ in _walk(tree)) > _MAX_NODES:
            raise jinja2.TemplateSyntaxError("the template is too long", 1)
        counted: nodes.Template = _Counting(self).visit(tree)
        counted.set_environment(self)
        return counted

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator."""
        budget = current.get()
        budget.tick()
        check_operation(budget, operator, left, right)
        return budget.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call what the template calls."""
        budget = current.get()
        budget.tick()
        check_method(budget, __obj, args, kwargs)
        return budget.made(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Guard `str.format`."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def apply(*args: Any, **kwargs: Any) -> str:
            check_format(current.get(), value.__self__, args, kwargs)
            return wrapped(*args, **kwargs)

        return functools.update_wrapper(apply, value)


class _Counting(NodeTransformer):
    """Rewrites a template so that what it does is counted; jinja2 calls the methods by name."""

    def __init__(self, environment: jinja2.Environment) -> None:
        self._environment = environment

    def visit_Output(self, node: nodes.Output) -> Any:  # noqa: N802
        literal = sum(len(n.data) for n in node.nodes if isinstance(n, nodes.TemplateData))
        return [_statement(literal, node.lineno), self.generic_visit(node)]

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.body.insert(0, _statement(0, node.lineno))
        if node.test is not None:
            node.test = _around(node.test, _TICK)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.body.insert(0, _statement(0, node.lineno))
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _around(node, _TICK)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _around(nodes.List(node.nodes, lineno=node.lineno), _CONCAT)

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return node if _constant(node.items) else _around(node, _MADE)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return node if node.ctx == "store" or _constant(node.items) else _around(node, _MADE)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _around(node, _MADE) if node.items else node


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's answers, for training; it has no effect here."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Dict:
    """`dict`, without the class's own attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _Namespace(Namespace):
    """`namespace`, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # Signature as jinja2's, so that `namespace(self=...)` works.
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot have the attribute {name!r}")


def _around(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _statement(literal: int, line: int) -> nodes.Node:
    """A statement that counts one step, and the text that the next one writes."""
    return nodes.ExprStmt(_around(nodes.Const(literal, lineno=line), _EMIT), lineno=line)


def _constant(items: list[nodes.Expr]) -> bool:
    return all(isinstance(item, nodes.Const) for item in items)


def _walk(node: nodes.Node) -> Iterator[nodes.Node]:
    pending = [node]
    while pending:
        item = pending.pop()
        yield item
        pending += item.iter_child_nodes()


@pass_context
def _printed(_: Context, value: Any) -> Any:
    # With the context: without it jinja2 would write constants while compiling.
    budget = current.get()
    budget.tick()
    return budget.made(value)


def _ticked(value: Any) -> Any:
    current.get().tick()
    return value


def _emitted(length: int) -> None:
    budget = current.get()
    budget.tick()
    budget.spend(length)


def _concatenated(items: list[Any]) -> str:
    budget = current.get()
    budget.tick()
    budget.reserve(budget.size(items))
    text = "".join(map(str, items))
    budget.made(text)
    return text


def _counted_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    # Some are given the context, the environment or the like first.
    skipped = 0 if getattr(function, "jinja_pass_arg", None) is None else 1

    @functools.wraps(function)
    def apply(*args: Any, **kwargs: Any) -> Any:
        budget = current.get()
        budget.tick()
        given = [_taken(budget, name, value) for value in args[skipped:]]
        check_filter(budget, name, given, kwargs)
        return budget.made(function(*args[:skipped], *given, **kwargs))

    return apply


def _taken(budget: Budget, name: str, value: Any) -> Any:
    if is_stream(value):
        items = budget.counted(value)
        # `join` is estimated by what it joins.
        return list(items) if name == "join" else items
    if name not in _FREE:
        budget.size(value)
    return value


def _counted_test(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def apply(*args: Any, **kwargs: Any) -> Any:
        current.get().tick()
        return function(*args, **kwargs)

    return apply


def _raise(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message)[:1000])


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML, which models are not trained on.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


__all__ = ["OutOfBudget", "TemplateSandbox"]
