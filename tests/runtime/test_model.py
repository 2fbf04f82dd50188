"""The public face: prompts and conversations in, text out."""

import gc
import shutil
import weakref
from pathlib import Path

import msgspec
import pytest

import edgelm
from edgelm.bundle import hash_files, read_manifest, write_manifest
from edgelm.errors import BadInput
from edgelm.runtime import LanguageModel, Message
from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.onnxruntime.ort import OrtEngine

HELLO: list[Message] = [{"role": "user", "content": "hello"}]


def test_streaming_equals_generate(lm: LanguageModel) -> None:
    done = lm.generate("The miller", max_tokens=40)
    chunks = list(lm.stream("The miller", max_tokens=40))
    assert "".join(chunk.text for chunk in chunks) == done.text
    assert len(chunks) > 5
    assert done.finish_reason == "length"
    assert done.usage.prompt_tokens == len(lm.tokenizer.encode("The miller"))


def test_streaming_a_chat_equals_chat(lm: LanguageModel) -> None:
    done = lm.generate(HELLO, max_tokens=20)
    assert lm.stream(HELLO, max_tokens=20).read().text == done.text
    assert done.usage.prompt_tokens == len(lm.chat_tokens(HELLO))


def test_a_string_is_one_message_of_the_user(lm: LanguageModel) -> None:
    assert lm.chat_tokens("hello").tolist() == lm.chat_tokens(HELLO).tolist()
    said = lm.chat().send("hello", max_tokens=5).read().text
    assert said == lm.generate(HELLO, max_tokens=5).text


def test_repr_names_the_bundle_its_target_and_its_engine(lm: LanguageModel) -> None:
    expected = f"<LanguageModel '{lm.folder}' for cpu on onnxruntime, context {lm.context}>"
    assert repr(lm) == expected


def test_chat_tokens_are_those_of_the_template_and_nothing_more(lm: LanguageModel) -> None:
    tokens = lm.chat_tokens(HELLO).tolist()
    assert tokens == lm.tokenizer.encode("<s>user: hello<|end|>", special=False).tolist()
    assert (tokens[0], tokens[-1]) == (1, 3)


def test_a_stream_is_lazy_but_its_errors_are_not(lm: LanguageModel) -> None:
    stream = lm.stream("hello", max_tokens=5)
    assert lm.session.length == 0
    next(stream)
    assert lm.session.length > 0
    with pytest.raises(BadInput, match="the prompt is empty"):
        lm.stream("")
    with pytest.raises(BadInput, match="the conversation is empty"):
        lm.chat_tokens([])


@pytest.mark.parametrize("stop", ["x", ["x", "y"], ("x",)], ids=["text", "list", "tuple"])
def test_stop_takes_one_or_several(lm: LanguageModel, stop: str | list[str]) -> None:
    bias = {int(lm.tokenizer.encode("x")[0]): 1000.0}
    done = lm.generate("a", max_tokens=5, stop=stop, logit_bias=bias)
    assert (done.finish_reason, done.text, done.chunks[-1].stop) == ("stop", "", "x")


def test_special_tokens_reach_the_template(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    (copy / "chat_template.jinja").write_text("{{ bos_token }}{{ eos_token }}{{ pad_token }}")
    with edgelm.load(copy, check_hashes=False) as lm:
        # eos_token is the first of several ends, the one that generation_config.json names.
        assert lm.chat_tokens(HELLO).tolist() == [1, 3, 0]


def test_a_model_without_a_template(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    (copy / "chat_template.jinja").unlink()
    manifest = read_manifest(copy)
    write_manifest(copy, msgspec.structs.replace(manifest, files=hash_files(copy)))
    with edgelm.load(copy) as lm:
        assert lm.generate("a", max_tokens=1).tokens
        with pytest.raises(BadInput, match="has no chat template: this model was not trained to"):
            lm.chat()


def test_close_releases_the_cache_and_can_be_repeated(bundle: Path) -> None:
    lm = edgelm.load(bundle)
    lm.generate("a", max_tokens=2)
    assert isinstance(lm.session, EngineSession)
    assert isinstance(lm.session.engine, OrtEngine)
    cache = weakref.ref(lm.session.engine._cache[0][0])
    lm.close()
    lm.close()
    gc.collect()
    assert cache() is None


def test_completion_knows_its_tokens_and_text(lm: LanguageModel) -> None:
    done = lm.generate("The miller", max_tokens=7, logprobs=2)
    assert len(done.tokens) == 7
    assert done.text == lm.tokenizer.decode(done.tokens)
    assert [len(chunk.top_logprobs) for chunk in done.chunks] == [2] * 7 + [0]
