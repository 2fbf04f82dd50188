"""What templates are made of: whole ones, pieces of them, and pieces that are meant to hurt."""

WHOLE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}<|end|>{% endfor %}",
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] "
    "+ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content | trim %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}"
    "{% endif %}"
    "{{ first }}{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.content | trim }}]{% endfor %}",
    "{%- set ns = namespace(n=0) -%}{% for m in messages %}{% set ns.n = ns.n + 1 %}\n"
    "  {%- if loop.last %}{{ m.content | tojson }}{% endif %}{% endfor %}{{ ns.n }}",
    "{% macro turn(m) %}{{ m.role | upper }}:{{ m.content.split(' ') | join('_') }};{% endmacro %}"
    "{% for m in messages %}{{ turn(m) }}{% endfor %}{{ strftime_now('%Y') | length }}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% break %}{% endif %}{% endfor %}",
    "{% if tools is not none %}{% for t in tools %}{{ t | tojson(indent=2) }}{% endfor %}"
    "{% endif %}"
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list }}",
)
EXPRESSIONS = (
    *("messages", "messages[0]", "messages[-1].content", "messages | length", "nothing", "none"),
    *("bos_token", "eos_token", "unk_token", "tools", "documents", "add_generation_prompt", "1"),
    *("'a'", "-1", "1.5", "[1, 2]", "{'a': 1}", "range(3)", "range(3) | list", "'%s' % 3", "1/0"),
    *("messages | tojson", "messages[0] | items | list", "'a,b'.split(',')", "'é' | upper"),
    *("'x'.format(1)", "'{0.a}'.format(1)", "raise_exception('no')", "strftime_now('%d %b %Y')"),
    *("strftime_now('%' * 99)", "cycler('a', 'b').next()", "joiner()", "namespace(a=1).a", "loop"),
    *("dict(a=1)", "lipsum(n=1) is string", "'a' * 3", "'a' ~ 1", "[1] + [2]", "2 ** 10", "7 // 2"),
    *("messages | map(attribute='role') | join", "messages | groupby('role') | list", "self"),
    *("messages | sort(attribute='role')", "'abc'[::-1]", "'abc' | reverse", "x.y.z", "x['y']"),
    *("messages[99]", "messages['a']", "''|int", "'ab' | batch(2) | list", "[[1]] | sum(start=[])"),
    *("'a' in 'abc'", "1 if x else 2", "messages | tojson(indent=4)", "'<&>' | e", "'%c' % 8364"),
)
BOMBS = (
    *("range(10 ** 9) | list", "range(99999) | list | string", "'a' * 10 ** 9", "[0] * 10 ** 9"),
    *("10 ** 10 ** 8", "2 ** 2 ** 30", "9 ** 9 ** 9", "'%1000000000d' % 1", "'%.999999999f' % 1"),
    *(
        "'{:1000000000}'.format(1)",
        "'a' | center(10 ** 9)",
        "'a'.ljust(10 ** 9)",
        "'a'.zfill(10**9)",
    ),
    *("lipsum(n=100000)", "lipsum(n=1, min=10**8, max=10**8+1)", "'a b' | indent(10 ** 9)"),
    *(
        "'a'.replace('', 'b' * 10 ** 6)",
        "('a' * 10**5).replace('a', 'b' * 10**5)",
        "1 | round(10**8)",
    ),
    *("[1] | slice(10 ** 9) | list", "[1] | batch(10 ** 9, 0) | list", "'a'.join(range(10**8))"),
    *("('a' * 10 ** 6).split('')", "('a' * 10**5) | wordwrap(1) | wordwrap(1)", "1 << 10 ** 10"),
    *(
        "(1, ) * 10 ** 9",
        "'a'.expandtabs(10 ** 9)",
        "'\\t'.expandtabs(10 ** 9)",
        "10 ** 5 | string",
    ),
    *("(10 ** 4300) | string", "('9' * 4000) | int ** 9999", "'a' * 2147483648", "-'a' * 10 ** 12"),
    *("(('a' * 1000) ~ 'b') * 10 ** 6", "[[]] * 10**7 | tojson", "'a'.encode('utf-8') * 10**9"),
    *("messages * 10 ** 8", "messages | tojson(indent=10 ** 9)", "strftime_now('%A' * 10 ** 8)"),
    *("range(0, 10 ** 12, 1)", "['a' * 10**6] * 10**5 | join", "dict(messages * 0) | tojson"),
    *("('a,' * 10**6).split(',') | map('upper') | join", "'a' | replace('a', 'b' * 10**9)"),
    *(
        "'a' * 10**6 | urlize * 1000",
        "(range(99999) | list) * 10**4",
        "[1] | sum(start='a' * 10**9)",
    ),
)
BLOCKS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "{% set ns = namespace(s='aa') %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}"
    "{% endfor %}{{ ns.s | length }}",
    "{% set ns = namespace(s='aa') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}"
    "{% endfor %}{{ ns.s | length }}",
    "{% set ns = namespace(s=['a']) %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}"
    "{% endfor %}{{ ns.s | length }}",
    "{% set ns = namespace(s='aa') %}{% for i in range(64) %}"
    "{% set ns.s = ns.s.replace('a', ns.s) %}{% endfor %}",
    "{% set ns = namespace(s='aa') %}{% for i in range(64) %}"
    "{% set ns.s = [ns.s, ns.s] | join %}{% endfor %}",
    "{% set ns = namespace(s='%s%s') %}{% for i in range(64) %}"
    "{% set ns.s = ns.s % (ns.s, ns.s) %}{% endfor %}",
    "{% set ns = namespace(n=9) %}{% for i in range(64) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f(n) %}{% if n %}{% set x = f(n - 1) %}{% set x = f(n - 1) %}{% endif %}"
    "{% endmacro %}"
    "{{ f(60) }}",
    "{% for x in [1] recursive %}{{ loop([1]) }}{{ loop([1]) }}{% endfor %}",
    "{% macro f() %}{{ caller() }}{{ caller() }}{% endmacro %}" + "{% call f() %}" * 60 + "x"
    "{% endcall %}" * 60,
    "{% filter replace('a', 'aaaaaaaaaa') %}" * 20 + "a" + "{% endfilter %}" * 20,
    "{% set x %}{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}{% endset %}",
    "{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}",
    "{% for i in range(99999) %}{{ messages | tojson }}{{ range(999) | list }}{% endfor %}",
    "{% set ns = namespace(l=[[]]) %}{% for i in range(99) %}{% set ns.l = [ns.l, ns.l] %}"
    "{% endfor %}{{ ns.l }}",
    "{% set ns = namespace(l=[[]]) %}{% for i in range(99) %}{% set ns.l = [ns.l, ns.l] %}"
    "{% endfor %}{{ ns.l | tojson }}",
    "{% set ns = namespace(l=[1]) %}{% for i in range(99999) %}{% set ns.l = [ns.l] %}{% endfor %}"
    "{{ ns.l | tojson }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{{ '' }}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% set x = range(99999) | list | sort | reverse | list %}"
    "{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "(" * 2000 + ")" * 2000,
    "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",
    "{{ " + "1 + " * 20_000 + "1 }}",
    "{{ " + "not " * 5_000 + "1 }}",
    "{{ " + "[" * 200 + "]" * 200 + " }}",
    "{% if 1 %}" * 300 + "{% endif %}" * 300,
    "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "".join(f"{{% set v{i} = {i} %}}" for i in range(30_000)),
    "{% raw %}" + "x" * 5_000_000 + "{% endraw %}",
)
ESCAPES = (
    *("''.__class__", "''['__class__']", "'' | attr('__class__')", "().__class__.__bases__[0]"),
    *(
        "''.__class__.__mro__[1].__subclasses__()",
        "self.__init__.__globals__",
        "self._TemplateReference__context",
    ),
    *("cycler.__init__.__globals__.os.system('id')", "lipsum.__globals__['os'].popen('id').read()"),
    *("joiner.__init__.__globals__", "namespace.__init__.__globals__", "range.__self__"),
    *("raise_exception.__globals__", "strftime_now.__globals__", "strftime_now.__code__"),
    *("messages.append({})", "messages.clear()", "messages[0].update(role='x')", "messages.pop()"),
    *(
        "messages[0].__setitem__('a', 1)",
        "'{0.__class__}'.format('')",
        "'%s' | format(''.__class__)",
    ),
    *("'{0.__init__.__globals__}'.format(cycler)", "''.format_map({})", "messages.sort.__self__"),
    *("(1).__class__.__base__", "dict.__base__", "messages | map(attribute='__class__') | list"),
    *("messages | map('attr', '__class__') | list", "messages | groupby('__class__')", "caller"),
    *(
        "messages | selectattr('__class__') | list",
        "tojson.__globals__",
        "loop.__class__",
        "gettext",
    ),
    *("config", "request", "url_for.__globals__", "get_flashed_messages", "environment", "ctx"),
    *("messages[0].get.__self__.clear()", "dict.fromkeys.__self__", "''.join.__call__.__self__"),
)
STATEMENTS = (
    *("{% include 'x' %}", "{% include '/etc/passwd' %}", "{% import 'x' as y %}", "{% break %}"),
    *(
        "{% from 'os' import system %}",
        "{% extends 'x' %}",
        "{% block a %}{% endblock %}",
        "{% do 1 %}",
    ),
    *("{% set messages = [] %}", "{% set self = 1 %}", "{% set loop = 1 %}", "{% continue %}"),
    *("{% generation %}", "{% endgeneration %}", "{% endfor %}", "{% endif %}", "{% else %}", "{#"),
    *(
        "{% set x.y = 1 %}",
        "{% set ns = 1 %}{% set ns.a = 2 %}",
        "{% autoescape true %}<{% endautoescape %}",
    ),
    *(
        "{% debug %}",
        "{% trans %}x{% endtrans %}",
        "{% with a = 1 %}{{ a }}{% endwith %}",
        "{{",
        "}}",
    ),
    *("{% for %}", "{% macro loop() %}{% endmacro %}", "{% macro f(a, a) %}{% endmacro %}", "{%"),
    *(
        "{% set a = b = 1 %}",
        "{{ 1 1 }}",
        "{{ a | nofilter }}",
        "{{ 1 is notest }}",
        "\\",
        "{{ '\\u12' }}",
    ),
    *(
        "{{ 0x }}",
        "{{ 1_000 }}",
        "{{ 1e999 }}",
        "{{ '\\N{DIGIT ONE}' }}",
        '{{ "\\x00" }}',
        "\x00",
        "\ufeff",
    ),
    *("{% for a, b in messages %}{% endfor %}", "{% for yield in [1] %}{% endfor %}", "{{ None }}"),
    *("{% set class = 1 %}{{ class }}", "{{ lambda }}", "{{ print(1) }}", "{{ __import__('os') }}"),
    *(
        "{% set __debug__ = 1 %}",
        "{{ def }}",
        "{% macro __init__() %}{% endmacro %}",
        "{{ await x }}",
    ),
)
