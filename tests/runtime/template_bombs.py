"""Templates that would run for ever or take all memory, run under limits: `python template_bombs.py
FOLDER` prints a line for each.
"""

import resource
import sys
import time
from pathlib import Path

from edgelm.errors import EdgeLMError
from edgelm.runtime.text import template_budget
from edgelm.runtime.text.chat import ChatTemplate

WHOLE = "nested ranges"
_DOUBLE = "{% set x = x ~ x %}"
_MACROS = "".join(
    f"{{% macro m{n}() %}}{{{{ m{n - 1}() }}}}{{{{ m{n - 1}() }}}}{{% endmacro %}}"
    for n in range(1, 60)
)
_BUFFERS = "".join(
    f"{{% macro m{n}() %}}{{% set a = m{n - 1}() %}}{{{{ a }}}}{{{{ a }}}}{{% endmacro %}}"
    for n in range(1, 60)
)
_FIRST = "{% macro m0() %}aaaaaaaaaa{% endmacro %}"
_LISTS = "{% set x = [1] %}" + "{% set x = [x, x, x, x] %}" * 40
BOMBS = {
    "one string": "{{ 'a' * 300000000 }}",
    "a constant": "{{ 'a' | center(1000000000) }}",
    "strings, doubled": "{% set x = 'a' %}" + _DOUBLE * 60 + "{{ x }}",
    "strings, added": "{% set x = 'a' %}" + "{% set x = x + x %}" * 60 + "{{ x }}",
    "strings, formatted": "{% set x = 'a' %}" + "{% set x = '%s%s' % (x, x) %}" * 60,
    "strings, str.format": "{% set x = 'a' %}" + "{% set x = '{0}{0}'.format(x) %}" * 60,
    "strings, joined": "{% set x = 'a' %}" + "{% set x = [x, x] | join %}" * 60,
    "strings, replaced": "{% set x = 'aa' %}" + "{% set x = x | replace('a', x) %}" * 60,
    "set blocks": "{% set x = 'a' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "many strings": "{% set x = 'a' * 1900000 %}"
    + "".join(f"{{% set x{n} = x ~ '{n}' %}}" for n in range(2000)),
    "one range": "{% for i in range(10**9) %}{% endfor %}",
    "nested ranges": "{% for i in range(99999) %}{% for j in range(99999) %}"
    "{% endfor %}{% endfor %}",
    "filtered ranges": "{% for i in range(99999) %}{% for j in range(99999) if false %}"
    "{% endfor %}{% endfor %}",
    "a loop that writes": "{% for i in range(99999) %}" + "x" * 100_000 + "{% endfor %}",
    "a loop that writes to a block": "{% set y %}{% for i in range(99999) %}"
    + "x" * 100_000
    + "{% endfor %}{% endset %}",
    "a recursive loop": "{% for i in [range(9999)] recursive %}{{ loop(range(9999)) }}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "macros": _FIRST + _MACROS + "{{ m59() }}",
    "macros that buffer": _FIRST + _BUFFERS + "{{ m59() }}",
    "power": "{{ 10 ** 1000000000 }}",
    "powers": "{% set x = 9 %}" + "{% set x = x * x %}" * 60 + "{{ x }}",
    "slices": "{{ [1] | slice(10000000000) | list }}",
    "batches": "{{ [1] | batch(1000000000, 'x') | list }}",
    "indent": "{{ ('a\n' * 100000) | indent(100000) }}",
    "indent by a text": "{{ ('a\n' * 100000) | indent('x' * 100000) }}",
    "wordwrap": "{{ ('a ' * 100000) | wordwrap(1, true, 'x' * 100000) }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "zfill": "{{ 'a'.zfill(1000000000) }}",
    "expandtabs": "{{ ('\t' * 1000).expandtabs(10000000) }}",
    "width": "{{ '%1000000000d' % 1 }}",
    "width given": "{{ '%*d' % (1000000000, 1) }}",
    "format width": "{{ '{:1000000000}'.format(1) }}",
    "format width given": "{{ '{:{}}'.format(1, 1000000000) }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "map of center": "{{ ['a'] | map('center', 1000000000) | list }}",
    "to_bytes": "{{ (1).to_bytes(1000000000, 'big') }}",
    "list times": "{{ [1] * 1000000000 }}",
    "lists in lists": _LISTS + "{{ x }}",
    "lists compared": _LISTS.replace("x", "y") + _LISTS + "{{ x == y }}",
    "lists as JSON": _LISTS + "{{ x | tojson }}",
    "tuples as keys": "{% set x = (1, 2) %}" + "{% set x = (x, x) %}" * 60 + "{{ {x: 1} }}",
    "namespaces": "{% set n = namespace(a='aaaa') %}" + "{% set n.a = n.a ~ n.a %}" * 60,
    "namespace in itself": "{% set n = namespace() %}{% set n.a = [n, n] %}{{ n }}",
    "json indent": "{{ range(10000) | list | tojson(indent=100000000) }}",
    "split": "{{ ('a ' * 900000).split() | length }}",
    "strip": "{{ ('a' * 1500000).strip('b' * 1500000 ~ 'a') }}",
    "rfind": "{{ ('a' * 1900000).rfind('b' ~ 'a' * 900000) }}",
    "searches": "{% set x = 'a' * 1900000 %}{% for i in range(99999) %}"
    "{% if 'ab' in x %}{% endif %}{% endfor %}",
    "sums of lists": "{{ ([[1, 2, 3, 4]] * 50000) | sum(start=[]) }}",
    "striptags": "{{ ('<!---->' * 250000) | striptags }}",
    "round": "{{ 5 | round(-1000000000, 'ceil') }}",
    "translate": "{{ ('a' * 10000).translate({97: 'b' * 1000000}) }}",
    "a generator": "{{ (range(99999) | map('string') | map('center', 99999)) | join }}",
    "fromkeys": "{{ dict.fromkeys(range(99999), 'a' * 1900000) }}",
    "blocks": "{% block a %}{{ self.b() }}{{ self.b() }}{% endblock %}"
    "{% block b %}{{ self.a() }}{% endblock %}",
    "call blocks": "{% macro f(n) %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call f(1) %}" * 40
    + "x"
    + "{% endcall %}" * 40,
    "lipsum": "{{ lipsum(1000000) }}",
    "many names": "".join(f"{{% set v{n} = 1 %}}" for n in range(5_500)),
    "many outputs": "".join(f"{{{{ v{n} }}}}" for n in range(9_000)),
    "deep brackets": "{{ " + "(" * 30_000 + ")" * 30_000 + " }}",
    "deep lists": "{{ " + "[" * 5_000 + "]" * 5_000 + " }}",
    "deep ifs": "{% if x %}" * 5_000 + "{% endif %}" * 5_000,
    "deep loops": "{% for i in [1] %}" * 150 + "{% endfor %}" * 150,
    "a long sum": "{{ " + "1+" * 30_000 + "1 }}",
    "a long number": "{{ " + "1" * 100_000 + " }}",
    "a long template": "x" * 1_000_000,
}


def main(folder: Path) -> None:
    """Run them all; each line has a name, the seconds it took, and how it ended."""
    resource.setrlimit(resource.RLIMIT_AS, (700_000_000, 700_000_000))
    path = folder / "chat_template.jinja"
    usual = template_budget._MAX_SECONDS
    for name, text in BOMBS.items():
        # Nobody waits for the whole second fifteen times; that it ends one is shown by `WHOLE`.
        template_budget._MAX_SECONDS = usual if name == WHOLE else usual / 5
        path.write_text(text)
        started = time.perf_counter()
        try:
            rendered = ChatTemplate(path, special_tokens={}).render(
                [{"role": "user", "content": "hello"}]
            )
            end = f"{len(rendered)} characters"
        except EdgeLMError as error:
            end = f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"
        except BaseException as error:  # what must not happen
            end = f"TRACEBACK {type(error).__name__}: {error}"
        seconds = time.perf_counter() - started
        print(f"{name}\t{seconds:.2f}\t{end}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
