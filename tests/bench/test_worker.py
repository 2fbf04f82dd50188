"""A worker process: the engine's answers, its errors, its death."""

from pathlib import Path

import numpy as np
import pytest

from edgelm.bench.worker import Worker, WorkerFailed, _visible_package
from edgelm.bundle import read_manifest
from tests.bench.conftest import FakeEngineMaker
from tests.bench.fake_worker import VOCAB
from tests.export.graphs import cpu_session


def start(fake: FakeEngineMaker, name: str) -> Worker:
    engine = fake(name)
    return Worker(engine.module, engine.python)


def load(worker: Worker, name: str) -> dict[str, object]:
    return worker.ask("load", options={"path": name, "context": 64, "threads": 1})


def test_edgelm_s_own_worker_measures_a_bundle(bundle: Path, tmp_path: Path) -> None:
    manifest = read_manifest(bundle)
    tokens = [5, 6, 7, 8]
    with Worker("edgelm.bench.engines.edgelm_worker", None) as worker:
        loaded = load(worker, str(bundle))
        assert loaded["vocab_size"] == manifest.spec.vocab_size
        assert loaded["context"] == 64
        assert loaded["kv"] == "fp32"
        assert loaded["weight_bytes"] == manifest.weight_bytes
        spec = manifest.spec
        assert loaded["kv_bytes"] == 64 * spec.kv_bytes_per_token(4)
        assert "threads 1" in str(loaded["options"])
        for key in ("load_ms", "hash_ms", "tokenizer_ms", "rss_before", "rss_after"):
            value = loaded[key]
            assert isinstance(value, int | float)
            assert value > 0
        assert worker.ask("prefill", tokens=8, depth=4, vocab_size=320)["ms"] > 0
        steps = worker.ask("decode", tokens=5, depth=8, vocab_size=320)["steps_ms"]
        assert len(steps) == 5
        assert min(steps) > 0
        path = tmp_path / "rows.npy"
        worker.ask("logits", tokens=tokens, path=str(path))
        assert worker.ask("memory")["peak_rss_bytes"] > 2**20
    with cpu_session(bundle, manifest.graph, capacity=64) as session:
        expected = session.advance(np.array(tokens), logits=4)
    np.testing.assert_allclose(np.load(path), expected, rtol=1e-4, atol=1e-5)


def test_an_engine_s_error_is_told_and_the_worker_lives_on(fake: FakeEngineMaker) -> None:
    with start(fake, "fails-to-decode") as worker:
        load(worker, "fails-to-decode")
        with pytest.raises(WorkerFailed, match="RuntimeError: cannot decode"):
            worker.ask("decode", tokens=2, depth=0, vocab_size=VOCAB)
        assert worker.ask("prefill", tokens=2, depth=0, vocab_size=VOCAB)["ms"] >= 0


def test_an_engine_that_hangs_is_killed(fake: FakeEngineMaker) -> None:
    with start(fake, "hangs") as worker:
        load(worker, "hangs")
        with pytest.raises(WorkerFailed, match=r"no answer to 'prefill' within 0.5 s; .* killed"):
            worker.ask("prefill", timeout_seconds=0.5, tokens=2, depth=0, vocab_size=VOCAB)


def test_an_unknown_verb_is_an_error(fake: FakeEngineMaker) -> None:
    with start(fake, "good") as worker, pytest.raises(WorkerFailed, match="KeyError: 'dance'"):
        worker.ask("dance")


def test_a_process_that_ends_leaves_its_last_lines(fake: FakeEngineMaker) -> None:
    with start(fake, "dies-in-prefill") as worker:
        load(worker, "dies-in-prefill")
        with pytest.raises(WorkerFailed, match="the process ended: out of memory"):
            worker.ask("prefill", tokens=2, depth=0, vocab_size=VOCAB)


def test_a_process_killed_between_two_questions(fake: FakeEngineMaker) -> None:
    with start(fake, "good") as worker:
        load(worker, "good")
        worker._process.kill()  # what the kernel does when memory runs out
        worker._process.wait()
        with pytest.raises(WorkerFailed, match="the process ended: killed by SIGKILL"):
            worker.ask("memory")


def test_a_module_that_cannot_be_imported() -> None:
    with (
        Worker("edgelm.bench.engines.no_such_worker", None) as worker,
        pytest.raises(WorkerFailed, match=r"the process ended: .*No module named"),
    ):
        worker.ask("memory")


def test_what_libraries_print_does_not_disturb_the_protocol(fake: FakeEngineMaker) -> None:
    with start(fake, "chatty") as worker:
        assert load(worker, "chatty")["version"] == "1.0"
        assert worker.ask("prefill", tokens=2, depth=0, vocab_size=VOCAB)["ms"] >= 0
        assert "and past Python" in worker._last_lines()


def test_workers_see_no_network_and_send_no_telemetry(
    fake: FakeEngineMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    with start(fake, "good") as worker:
        worker.ask("memory")  # it answers: the environment is its own by now
        raw = Path(f"/proc/{worker._process.pid}/environ").read_bytes()
    environment = dict(item.partition(b"=")[::2] for item in raw.split(b"\0"))
    assert environment[b"ORT_DISABLE_TELEMETRY"] == b"1"
    assert environment[b"HF_HUB_OFFLINE"] == b"1"


def test_a_peer_s_interpreter_sees_the_workers_and_nothing_else_of_ours(tmp_path: Path) -> None:
    package = _visible_package(tmp_path) / "edgelm"
    assert {path.name for path in package.iterdir()} == {"__init__.py", "bench"}
    assert (package / "bench" / "engines" / "protocol.py").is_file()


def test_closing_removes_the_scratch_folder(fake: FakeEngineMaker) -> None:
    with start(fake, "good") as worker:
        scratch = Path(worker._scratch.name)
        assert scratch.is_dir()
    assert not scratch.exists()
    assert worker._process.returncode == 0
