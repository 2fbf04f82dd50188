from typing import Any

import pytest
import torch
from torch.testing import assert_close

from edgelm.compress.vocabulary.embeddings import trim_embeddings
from edgelm.compress.vocabulary.trim import trim_vocabulary
from edgelm.errors import BadCheckpoint, BadInput
from tests.checkpoints.models import tiny_model
from tests.checkpoints.tiny_chat import VOCAB, tiny_tokenizer
from tests.compress.small_tokenizers import as_json


@pytest.mark.parametrize(
    ("name", "over"),
    [
        ("llama", {}),
        ("llama-untied", {}),
        ("gemma2", {"tie_word_embeddings": True}),
        ("qwen3", {"vocab_size": 384}),
    ],
    ids=["tied", "untied", "soft cap", "padding rows"],
)
def test_logits_of_kept_tokens_stay(name: str, over: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"vocab_size": VOCAB, "eos_token_id": [2, 3]} | over
    model = tiny_model(name, **settings)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    content = as_json(tiny_tokenizer())
    trimmed = trim_vocabulary(model, content, ["The blue wheel."], size=280, multiple=8)
    keep = list(trimmed.keep)
    assert len(keep) == 280
    ids = torch.randint(len(keep), (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = trimmed.model(ids).logits
        theirs = model(torch.tensor(keep)[ids]).logits[..., keep]
    assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.config.vocab_size == over.get("vocab_size", VOCAB)

    tied = model.config.tie_word_embeddings
    rows = model.config.vocab_size - 280
    assert trimmed.parameters_saved == rows * 64 * (1 if tied else 2)
    head, embedding = trimmed.model.lm_head, trimmed.model.model.embed_tokens
    assert (head.weight is embedding.weight) == tied
    sizes = [head.out_features, embedding.num_embeddings, trimmed.model.config.vocab_size]
    assert sizes == [280, 280, 280]
    assert trimmed.model.model.config.vocab_size == trimmed.model.vocab_size == 280
    with torch.no_grad():
        trimmed.model.model.norm.weight.zero_()
    assert model.model.norm.weight.any()


@pytest.mark.parametrize(("name", "rows"), [("gemma3n", 300), ("gemma4", VOCAB)])
def test_the_embedding_for_every_layer_is_trimmed_too(name: str, rows: int) -> None:
    """Gemma 3n's has fewer rows than there are tokens, and the first one stands for the others."""
    over = {"vocab_size": VOCAB, "vocab_size_per_layer_input": rows}
    model = tiny_model(name, **over)
    keep = [0, 1, 2, 7, 40, 255, 299, 300, 319]
    trimmed = trim_embeddings(model, keep)
    ids = torch.randint(len(keep), (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = trimmed(ids).logits
        theirs = model(torch.tensor(keep)[ids]).logits[..., keep]
    assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert trimmed.model.embed_tokens_per_layer.weight.shape[0] == len(keep)
    assert trimmed.config.vocab_size_per_layer_input == len(keep)
    assert model.config.vocab_size_per_layer_input == rows


def test_head_bias_and_ids_in_the_configuration() -> None:
    model = tiny_model("llama-untied", pad_token_id=9, bos_token_id=5, eos_token_id=[7, 9])
    model.lm_head.bias = torch.nn.Parameter(torch.arange(128.0), requires_grad=False)
    model.generation_config.eos_token_id = 7
    model.generation_config.suppress_tokens = [4, 5]
    model.generation_config.bad_words_ids = [[5, 7], [5, 8]]
    trimmed = trim_embeddings(model, [5, 7, 9, 127])
    assert trimmed.lm_head.bias.tolist() == [5, 7, 9, 127]
    assert not trimmed.lm_head.bias.requires_grad
    config, generation = trimmed.config, trimmed.generation_config
    assert [config.bos_token_id, config.eos_token_id, config.pad_token_id] == [0, [1, 2], 2]
    assert generation.eos_token_id == 1
    assert (generation.suppress_tokens, generation.bad_words_ids) == ([0], [[0, 1]])
    assert trimmed.model.embed_tokens.padding_idx == trimmed.model.padding_idx == 2
    assert model.model.embed_tokens.padding_idx == 9


def test_ids_that_do_not_fit_the_model() -> None:
    model = tiny_model("llama", eos_token_id=99)
    with pytest.raises(BadCheckpoint, match=r"vocabulary disagree: .* go up to 128 .* for 128"):
        trim_embeddings(model, range(129))
    with pytest.raises(BadInput, match=r"uses token 99 .* not among the 10 kept"):
        trim_embeddings(model, range(10))
    with pytest.raises(BadInput, match="are not ascending"):
        trim_embeddings(model, [])
