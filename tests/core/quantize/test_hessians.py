"""Second moments equal those of what Hugging Face's modules are given."""

from pathlib import Path

import numpy as np
import pytest
import torch

from edgelm.export.quantize.calibrate import calibrate
from edgelm.export.quantize.weights import Weights
from edgelm.export.source.reference import Reference
from edgelm.quantize.hessians import Hessians
from tests.conftest import Tiny, TinyFactory

TOKENS = torch.from_numpy(np.random.default_rng(0).integers(3, 128, (3, 20)))
FAMILIES = ["llama", "llama-untied", "phi3", "olmo2", "gemma2"]


def collected(source: Tiny, folder: Path) -> Hessians:
    reference = Reference(source.checkpoint)
    hessians = Hessians(folder, source.checkpoint.spec)
    with hessians.watching(reference.model):
        for rows in TOKENS.split(2):
            reference.hidden_states(rows)
    return hessians


def moments_of(source: Tiny, group: str) -> torch.Tensor:
    """The same from the model as a whole."""
    name = Weights(source.checkpoint).tensor_names(group)[0].removesuffix(".weight")
    seen: list[torch.Tensor] = []
    module = source.hf.lm_head if group == "lm_head" else source.hf.get_submodule(name)
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        source.hf(TOKENS)
    hook.remove()
    inputs = seen[0].flatten(0, -2).double()
    return inputs.T @ inputs / len(inputs)


@pytest.mark.parametrize("name", FAMILIES)
def test_equal_those_of_the_whole_model(tiny: TinyFactory, tmp_path: Path, name: str) -> None:
    source = tiny(name)
    hessians = collected(source, tmp_path)
    assert set(hessians.groups) == set(Weights(source.checkpoint).groups()) - {"embedding"}
    for group in ("layers.0.attention.qkv", "layers.1.attention.o", "layers.2.mlp.gate_up"):
        torch.testing.assert_close(
            hessians[group].double(), moments_of(source, group), rtol=1e-3, atol=1e-4
        )
    for group in ("layers.3.mlp.down", "lm_head"):
        expected = moments_of(source, group)
        tolerance = 1e-4 * float(expected.abs().max())
        torch.testing.assert_close(hessians[group].double(), expected, rtol=1e-3, atol=tolerance)


def test_one_pass_serves_calibration_too(calm: TinyFactory, tmp_path: Path) -> None:
    source = calm("llama")
    reference, weights = Reference(source.checkpoint), Weights(source.checkpoint)
    hessians = Hessians(tmp_path, weights.checkpoint.spec)
    with hessians.watching(reference.model):
        seen = calibrate(reference, TOKENS)
    for group in hessians.groups:
        names = weights.tensor_names(group)
        energy = seen.mean_square["lm_head.weight" if group == "lm_head" else names[0]]
        torch.testing.assert_close(hessians[group].diagonal(), energy, rtol=1e-4, atol=1e-7)


def test_nothing_has_run(calm: TinyFactory, tmp_path: Path) -> None:
    hessians = Hessians(tmp_path, calm("llama").checkpoint.spec)
    with pytest.raises(KeyError, match="lm_head"):
        hessians["lm_head"]


def test_nothing_is_added_outside_of_the_block(calm: TinyFactory, tmp_path: Path) -> None:
    source = calm("llama")
    hessians = collected(source, tmp_path)
    before = hessians["lm_head"].clone()
    reference = Reference(source.checkpoint)
    with hessians.watching(reference.model):
        pass
    reference.hidden_states(TOKENS)
    assert torch.equal(hessians["lm_head"], before)
    assert {path.suffix for path in tmp_path.iterdir()} == {".hessian"}


def test_sums_of_another_process_are_taken_if_all_are_there(
    calm: TinyFactory, tmp_path: Path
) -> None:
    source = calm("llama")
    before = collected(source, tmp_path)["lm_head"].clone()
    spec, count = source.checkpoint.spec, TOKENS.numel()
    again = Hessians(tmp_path, spec, tokens=count)
    assert again.collected
    assert torch.equal(again["lm_head"], before)

    file = tmp_path / "lm_head.hessian"
    file.write_bytes(file.read_bytes()[:-4])
    assert not Hessians(tmp_path, spec, tokens=count).collected
    assert list(tmp_path.iterdir()) == [], "sums that cannot be trusted are removed"


def test_sums_of_a_killed_process_are_not_added_to(calm: TinyFactory, tmp_path: Path) -> None:
    source = calm("llama")
    before = collected(source, tmp_path)["lm_head"].clone()
    assert torch.equal(collected(source, tmp_path)["lm_head"], before)
