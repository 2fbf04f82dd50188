"""What the words and the columns of a report mean."""

from edgelm.bench.report.records import Report, Result
from edgelm.bench.report.selection import test_of

TERMS = {
    "engine": "The software that ran the model, with the precision of its weights.",
    "MB": "Megabytes (1,000,000 bytes) of weights that the engine loads.",
    "bits/weight": "Bits of the weights, scales included, per parameter of the model.",
    "KL": "Kullback-Leibler divergence of the next-token probabilities from the source model's in "
    "fp32, mean over tokens, in nats. 0 is identical; lower is better.",
    "top-1": "Share of positions at which the most probable token is the source model's.",
    "t/s": "Tokens per second: the median of the rounds, with the 10th and 90th percentiles in "
    "brackets. Sampling and tokenizing are excluded.",
    "of bound": "Share of the memory-bandwidth bound, for each generation test: the time to read "
    "the weights and the cache once at the measured bandwidth, over the time that a token took. "
    "Processor caches can lift it above 100%.",
    "J/token": "Energy per generated token, idle draw included, for each generation test. Unknown "
    "for a round of fewer than five readings.",
    "peak MB": "Highest resident memory of the engine's process over all tests.",
    "GPU MB": "What the process held of a GPU's own memory after all tests.",
    "load ms": "Time until the model could run, files in the page cache, without hashing, and "
    "without the tokenizer where that is separate.",
    "KV": "Type of the key-value cache.",
    "context": "Tokens that the cache has room for.",
    "first token": "Time until the logits after the prompt's last token can be read.",
    "†": "A round far from the others: more than three standard deviations (estimated from the "
    "median absolute deviation) and more than 10% from the median.",
}
_SOMETIMES = ("J/token", "GPU MB")


def terms(report: Report, headings: list[str]) -> dict[str, str]:
    """The terms that this report uses."""
    tests = {one.test: test_meaning(one) for one in report.results}
    words = {
        term: meaning
        for term, meaning in TERMS.items()
        if term in headings or term not in _SOMETIMES
    }
    return tests | words


def test_meaning(result: Result) -> str:
    """What a test does."""
    test = test_of(result)
    if test.kind == "pp":
        return f"Prompt processing: {test.tokens:,} tokens at once, from an empty cache."
    before = f"after {test.depth:,} tokens" if test.depth else "from an empty cache"
    return f"Token generation: {test.tokens:,} tokens one by one, {before}."
