"""In a large vocabulary most tokens are computed in single precision: the choices stay the same."""

import numpy as np
import pytest

from edgelm.runtime.generation.sampling import transforms
from edgelm.runtime.generation.sampling.sampler import Sampler
from edgelm.runtime.generation.sampling.settings import Sampling

SIZE = 150_000
SAMPLINGS = {
    "top-p": Sampling(temperature=1, top_p=0.9),
    "llama": Sampling(temperature=0.6, top_p=0.9),
    "qwen": Sampling(temperature=0.7, top_k=20, top_p=0.8),
    "nearly all": Sampling(temperature=1, top_p=0.9999),
    "hardly any": Sampling(temperature=2, top_p=0.01),
}


@pytest.mark.parametrize("spread", [0.1, 3.0, 12.0])
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_the_same_tokens_are_kept(
    sampling: Sampling, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(3):
        row = np.random.default_rng(seed).normal(0, spread, SIZE).astype(np.float32)
        ours = Sampler(sampling).transformed(row, [])
        monkeypatch.setattr(transforms, "_SMALL_VOCABULARY", SIZE)
        exact = Sampler(sampling).transformed(row, [])
        monkeypatch.undo()
        # Where the sums meet the mass within their rounding, one token more or less is kept.
        assert np.count_nonzero(np.isfinite(ours) != np.isfinite(exact)) <= 1
        both = np.isfinite(ours) & np.isfinite(exact)
        np.testing.assert_allclose(ours[both], exact[both], rtol=1e-6)


def test_forbidden_tokens_stay_forbidden() -> None:
    row = np.full(SIZE, -np.inf, dtype=np.float32)
    row[[5, 700, 80_000]] = [1.0, 0.5, -40.0]
    kept = Sampler(Sampling(temperature=0.6, top_p=0.95)).transformed(row, [])
    assert np.flatnonzero(np.isfinite(kept)).tolist() == [5, 700]


def test_logits_far_from_zero() -> None:
    row = np.random.default_rng(1).normal(1e6, 3, SIZE).astype(np.float32)
    near = Sampler(Sampling(temperature=1, top_p=0.5)).transformed(row - np.float32(1e6), [])
    far = Sampler(Sampling(temperature=1, top_p=0.5)).transformed(row, [])
    assert np.array_equal(np.isfinite(near), np.isfinite(far))
