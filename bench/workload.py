"""What is measured: llama-bench's vocabulary, `pp512`, `tg128@d4096`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Test:
    """One test: prompt processing or token generation of `tokens`, after `depth` tokens."""

    kind: Literal["pp", "tg"]
    tokens: int
    depth: int = 0

    @property
    def name(self) -> str:
        """llama-bench's name; depth 0 has no suffix."""
        return f"{self.kind}{self.tokens}" + (f"@d{self.depth}" if self.depth else "")


def workload(prompts: list[int], generate: list[int], depths: list[int]) -> list[Test]:
    """Prompts at depth 0, generation at every depth.

    Prompts are not repeated at every depth, unlike in llama-bench: the time to first token of a
    prompt as long as the depth comes with each generation test.
    """
    tests = [Test("pp", tokens) for tokens in prompts]
    return tests + [Test("tg", tokens, depth) for tokens in generate for depth in depths]


def context_needed(tests: list[Test]) -> int:
    """Tokens of context to allocate: the deepest test, a prompt and an answer on top of it."""
    prompt = max((test.tokens for test in tests if test.kind == "pp"), default=0)
    answer = max((test.tokens for test in tests if test.kind == "tg"), default=0)
    return max(test.depth for test in tests) + prompt + answer
