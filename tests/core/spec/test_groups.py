"""Groups cover every matrix of a checkpoint, each once."""

import pytest

from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.groups import EMBEDDING, HEAD, experts_in, groups, split_group, tensor_names
from edgelm.spec.tensor_shapes import tensor_shapes
from tests.checkpoints.models import TINY, tiny_model


@pytest.mark.parametrize("name", TINY)
def test_every_matrix_is_in_one_group(name: str) -> None:
    spec = DecoderSpec.from_hf(tiny_model(name).config.to_dict())
    found = [tensor for group in groups(spec) for tensor in tensor_names(spec, group)]
    assert sorted(found) == sorted(
        tensor
        for tensor, shape in tensor_shapes(spec).items()
        if len(shape) == (3 if ".experts." in tensor else 2)
        and not tensor.endswith(("mlp.gate.weight", "router.weight", "feed_forward.gate.weight"))
        and not tensor.endswith("shared_expert_gate.weight")
        and ".altup." not in tensor
    )
    assert groups(spec)[-1] == HEAD
    assert (groups(spec)[0] == EMBEDDING) != spec.tie_word_embeddings
    inputs = {
        group: {tensor_shapes(spec)[one][1] for one in tensor_names(spec, group)}
        for group in groups(spec)
        if not experts_in(spec, group)
    }
    assert all(len(columns) == 1 for columns in inputs.values()), "stacked by rows"


def test_a_groups_layer() -> None:
    assert split_group("layers.12.mlp.gate_up") == (12, "mlp.gate_up")
