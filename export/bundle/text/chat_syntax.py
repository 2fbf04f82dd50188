"""Whether a chat template parses, so that a damaged one is refused at export."""

import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgelm.errors import BadCheckpoint


def check_template(source: str, template: str) -> None:
    """Raise BadCheckpoint unless a template parses; nothing of it is run.

    Args:
        source: names the model in the message.
        template: the template's text.
    """
    environment = ImmutableSandboxedEnvironment(
        extensions=["jinja2.ext.loopcontrols", _GenerationBlock]
    )
    environment.filters["tojson"] = str
    try:
        environment.compile(template)
    except Exception as error:  # the parser fails in other ways than a syntax error too
        raise BadCheckpoint(
            f"the chat template of {source} does not parse: {str(error)[:200]}; repair it, or "
            "remove it to export without one"
        ) from None


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}` ... `{% endgeneration %}`, which marks text to train on."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)
