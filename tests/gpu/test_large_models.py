"""Models that a GPU has no room for: layers that stay in host memory."""

import pytest
import torch

from edgelm.compress.offloading import offload_layers, room_for_weights
from edgelm.compress.pruning.importance import score
from tests.checkpoints.models import tiny_model

pytestmark = pytest.mark.gpu


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_scores_with_layers_in_host_memory() -> None:
    """The scores of a model that fits, with the memory of a fraction of it."""
    device, tokens = torch.device("cuda"), torch.arange(48).view(4, 12)
    sizes = {"hidden_size": 512, "intermediate_size": 8192, "num_hidden_layers": 12}
    model, whole = tiny_model("llama", **sizes), tiny_model("llama", **sizes).to(device)
    expected = score(whole, [tokens])
    del whole
    torch.cuda.empty_cache()
    assert (room_for_weights(device) or 0) > 1 << 28
    torch.cuda.reset_peak_memory_stats(device)
    assert offload_layers(model, device, 200 << 20) > 6
    found = score(model, [tokens])
    assert torch.cuda.max_memory_allocated(device) < 300 << 20
    for name, value in vars(expected).items():
        if value is not None:
            torch.testing.assert_close(getattr(found, name), value, rtol=1e-4, atol=1e-6)
