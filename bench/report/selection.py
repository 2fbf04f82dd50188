"""Which results of a report are shown where: by engine, by test, and first of all."""

from edgelm.bench.report.records import Report, Result
from edgelm.bench.workload import Test

OWN = "edgelm "  # how the names of our engine's configurations begin
_TYPICAL = 512  # tokens of a prompt or a conversation; the tests nearest to it come first


def engines(report: Report) -> dict[str, dict[str, Result]]:
    """Results by engine, then by test, in the order measured."""
    grouped: dict[str, dict[str, Result]] = {}
    for result in report.results:
        grouped.setdefault(result.engine, {})[result.test] = result
    return grouped


def test_names(report: Report) -> list[str]:
    """Every test that was run."""
    return list(dict.fromkeys(result.test for result in report.results))


def is_own(engine: str) -> bool:
    """Whether an engine is edgelm's runtime rather than a peer."""
    return engine.startswith(OWN)


def own_results(report: Report) -> list[Result]:
    """All tests of the first bundle; empty where no bundle was measured."""
    first = next((result.engine for result in report.results if is_own(result.engine)), None)
    return [result for result in report.results if result.engine == first]


def typical_prompt(results: list[Result]) -> Result | None:
    """Processing of the prompt nearest to 512 tokens."""
    prompts = [result for result in results if test_of(result).kind == "pp"]
    return min(prompts, key=lambda one: abs(test_of(one).tokens - _TYPICAL), default=None)


def typical_decode(results: list[Result]) -> Result | None:
    """Generation at the depth nearest to 512 tokens."""
    decode = [result for result in results if test_of(result).kind == "tg"]
    return min(decode, key=lambda one: abs(test_of(one).depth - _TYPICAL), default=None)


def test_of(result: Result) -> Test:
    """The test that a result names, as tg128@d512."""
    name, _, depth = result.test.partition("@d")
    return Test("pp" if name.startswith("pp") else "tg", int(name[2:]), int(depth or 0))
