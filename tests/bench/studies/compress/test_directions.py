"""Claims and verdicts of the directions' table, on figures made up by hand."""

import pytest

from bench.studies.compress.directions import ARMS, CLAIMS, _steps_to, table, verdict
from edgelm.compress.pruning.shape import Shape


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ([0.3, 0.2, 0.25], "holds"),
        ([-0.3, -0.2, -0.25], "does not hold"),
        ([0.3, -0.1, 0.2], "too small to tell"),
        ([0.9, 0.01, 0.01], "too small to tell"),
        ([0.3], "one seed"),
        ([0.3, 0.3, 0.3], "one measurement: seeds change nothing"),
    ],
)
def test_verdict_needs_every_seed_and_two_errors(gains: list[float], expected: str) -> None:
    mean = sum(gains) / len(gains)
    spread = (sum((gain - mean) ** 2 for gain in gains) / max(1, len(gains) - 1)) ** 0.5
    assert verdict(gains, mean, spread / len(gains) ** 0.5) == expected


def test_every_claim_is_about_arms_that_there_are() -> None:
    assert {claim.better for claim in CLAIMS} | {claim.worse for claim in CLAIMS} <= set(ARMS)


def test_rows_by_hand() -> None:
    each = {"loss": 3.0, "kl": 0.5, "accuracy": 0.3}
    figures = {name: {seed: dict(each) for seed in "01"} for name in ARMS}
    del figures["top-32"]
    figures["ce"] = {
        seed: {"loss": loss, "kl": kl, "accuracy": 0.3}
        for seed, loss, kl in (("0", 3.1, 0.4), ("1", 3.12, 0.39))
    }
    for name, spread in (("corrected", 0.1), ("cut-in-4", 0.001)):
        figures[name] = {"0": each | {"loss": 3 + spread}, "1": each | {"loss": 3 - spread}}
    rows = table(figures).splitlines()
    assert (
        "| R4 | KD beats cross-entropy | loss 3.0000 | 3.1100 | -0.1100 ± 0.0100 | holds |" in rows
    )
    kl = next(row for row in rows if row.startswith("| R4 | ... in KL"))
    assert kl.endswith("| kl 0.5000 | 0.3950 | +0.1050 ± 0.0050 | does not hold |")
    assert any(row.startswith("| R7") and row.endswith("| not run |") for row in rows)
    # Equal figures are within a margin, and no difference without one.
    assert any(row.startswith("| R2") and row.endswith("| holds |") for row in rows)
    assert any(row.startswith("| R10") and row.endswith("| too small to tell |") for row in rows)


def test_shapes_on_the_way_end_at_the_shape() -> None:
    full, asked = Shape(30, 576, 1536, 9, 3), Shape(26, 576, 1152, 9, 3)
    way = list(_steps_to(asked, full, 4))
    assert way[-1] == asked
    assert [shape.num_hidden_layers for shape in way] == [29, 28, 27, 26]
    assert list(_steps_to(asked, full, 1)) == [asked]
