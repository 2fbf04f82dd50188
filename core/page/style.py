"""Colors and CSS of every page, for light and dark screens and from a telephone's width up.

Every color of text stands out from the page by 4.5 to 1 at least, every color of a mark by 3 to 1
(WCAG 2.2, AA); a test computes it.
"""

LIGHT = {
    "ink": "#1c1c1e",
    "dim": "#5c5c63",
    "line": "#d6d6dc",
    "page": "#ffffff",
    "card": "#f5f5f7",
    "good": "#146c34",
    "bad": "#a8201a",
    "s0": "#2563c9",
    "s1": "#c2410c",
    "s2": "#15803d",
    "s3": "#9333a8",
    "s4": "#8a5a00",
    "s5": "#0e7490",
}
DARK = {
    "ink": "#ececee",
    "dim": "#a9a9b2",
    "line": "#3c3c42",
    "page": "#161618",
    "card": "#222226",
    "good": "#5cc47f",
    "bad": "#ff8a80",
    "s0": "#7aa7f0",
    "s1": "#f0925c",
    "s2": "#5cc47f",
    "s3": "#cf8be0",
    "s4": "#d9a943",
    "s5": "#4bb9d0",
}


def _variables(colors: dict[str, str]) -> str:
    return "; ".join(f"--{name}: {value}" for name, value in colors.items())


PLOT_STYLE = (
    f":root {{ color-scheme: light dark; {_variables(LIGHT)} }}\n"
    f"@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}\n"
    """\
svg text { font: 12px system-ui, sans-serif; fill: var(--dim); }
svg text.name { fill: var(--ink); } svg text.bold { font-weight: 600; }
svg text.title { fill: var(--ink); font-size: 13px; font-weight: 600; }
.paper { fill: var(--page); }
.grid { stroke: var(--line); fill: none; }
.guide { stroke: var(--dim); stroke-dasharray: 2 2; fill: none; }
.line { fill: none; stroke-width: 1.5; } .line.bold { stroke-width: 3; }
.whisker, .cross { fill: none; stroke-width: 1.5; }
"""
    + "".join(
        f".line.s{i}, .whisker.s{i}, .cross.s{i} {{ stroke: var(--s{i}); }} "
        f".mark.s{i}, .bar.s{i} {{ fill: var(--s{i}); }}\n"
        for i in range(6)
    )
)

PAGE_STYLE = (
    PLOT_STYLE
    + """\
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; color: var(--ink);
  background: var(--page); overflow-wrap: anywhere; }
main, footer { max-width: 76rem; margin: 0 auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1.5rem 0 .75rem; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .5rem; }
p, li, dd { max-width: 46rem; }
code { background: var(--card); padding: .1rem .3rem; border-radius: 3px; font-size: .9em; }
footer { color: var(--dim); font-size: .875rem; padding-bottom: 2rem; }
.lead { font-size: 1.15rem; }
.note, .legend, caption { color: var(--dim); font-size: .875rem; }
.alert { border-left: 6px solid var(--bad); background: var(--card); padding: .6rem 1rem; }
.statements { list-style: none; padding: 0; display: grid; gap: .5rem; }
.statements li { border-left: 4px solid var(--dim); padding-left: .75rem; }
.statements .yes { border-color: var(--good); } .statements .no { border-color: var(--bad); }
.yes > strong { color: var(--good); } .no > strong { color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .75rem;
  margin: 1.25rem 0; padding: 0; list-style: none; }
.tiles li { background: var(--card); border-radius: 8px; padding: .75rem 1rem; max-width: none; }
.tiles .value { display: block; font-size: 1.75rem; line-height: 1.2; font-weight: 600; }
.tiles .unit { font-size: 1rem; font-weight: 400; }
.tiles .detail { display: block; color: var(--dim); font-size: .875rem; }
.wide { overflow-x: auto; max-width: 100%; }
.wide:focus-visible, button:focus-visible { outline: 3px solid var(--s0); outline-offset: 2px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .8125rem;
  overflow-wrap: normal; }
caption { text-align: left; padding: .25rem 0; }
th, td { padding: .35rem .4rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; font-weight: 400; white-space: nowrap; }
thead th { font-weight: 600; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child, .text { text-align: left; }
tbody th, td.text { white-space: normal; min-width: 9rem; max-width: 22rem;
  overflow-wrap: anywhere; }
tr.own { background: var(--card); } tr.own th { font-weight: 600; }
th button { all: unset; cursor: pointer; } th button:focus-visible { border-radius: 2px; }
th[aria-sort] button::after { content: "\\a0↕"; color: var(--dim); }
th[aria-sort=ascending] button::after { content: "\\a0↑"; color: var(--ink); }
th[aria-sort=descending] button::after { content: "\\a0↓"; color: var(--ink); }
abbr[title] { text-decoration: underline dotted; text-underline-offset: .2em; cursor: help; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: 1.5rem; align-items: start; }
.plot { margin: 0; max-width: 34rem; } .plot figcaption { font-weight: 600; }
.plot > svg { display: block; width: 100%; height: auto; }
.legend { list-style: none; padding: 0; margin: .25rem 0; display: flex; flex-wrap: wrap;
  gap: .1rem 1rem; }
.key { width: 30px; height: 12px; vertical-align: -1px; }
dl { columns: 24rem; column-gap: 2rem; } dl div { break-inside: avoid; }
dt { font-weight: 600; } dd { margin: 0 0 .6rem; }
@media (max-width: 30rem) { h1 { font-size: 1.35rem; } .lead { font-size: 1.05rem; }
  tbody th { max-width: 9rem; } .tiles { gap: .4rem; } .tiles li { padding: .5rem; }
  .tiles .value { font-size: 1.3rem; } .tiles .unit { font-size: .8rem; } }
"""
)
