import pytest

from edgelm.bench.workload import Test as Job
from edgelm.bench.workload import context_needed, workload


@pytest.mark.parametrize(
    ("test", "name"),
    [
        (Job("pp", 512), "pp512"),
        (Job("tg", 128), "tg128"),
        (Job("tg", 128, 4096), "tg128@d4096"),
        (Job("pp", 8, 16), "pp8@d16"),
    ],
    ids=lambda value: value if isinstance(value, str) else "test",
)
def test_names_are_llama_bench_s(test: Job, name: str) -> None:
    assert test.name == name


def test_prompts_once_and_generation_at_every_depth() -> None:
    names = [test.name for test in workload([16, 512], [32, 128], [0, 512])]
    assert names == ["pp16", "pp512", "tg32", "tg32@d512", "tg128", "tg128@d512"]


@pytest.mark.parametrize(
    ("prompts", "generate", "depths", "context"),
    [
        ([512], [128], [0], 512 + 128),
        ([512], [128], [0, 4096], 4096 + 512 + 128),
        ([16, 8], [4, 2], [32, 0], 32 + 16 + 4),
    ],
)
def test_context_holds_the_deepest_test(
    prompts: list[int], generate: list[int], depths: list[int], context: int
) -> None:
    assert context_needed(workload(prompts, generate, depths)) == context


def test_context_of_one_kind_alone() -> None:
    assert context_needed([Job("tg", 10, 20)]) == 30
    assert context_needed([Job("pp", 10)]) == 10
