"""The self-test: a bundle passes where it was exported, and every broken one is caught."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgelm.bundle.records.gate_sample import Predictions
from edgelm.export.gate import prompts
from edgelm.export.pipeline import export_model
from edgelm.runtime import cli
from edgelm.runtime.self_test import agree, self_test
from tests.checkpoints.tiny_chat import TEMPLATE, save_tiny_chat
from tests.export.gate.talker import save_talker
from tests.runtime import broken_bundles as broken

GENERATION = "{% if add_generation_prompt %}<s>assistant: {% endif %}"


def _export(source: Path, folder: Path, precision: str) -> Path:
    (source / "chat_template.jinja").write_text(TEMPLATE + GENERATION)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompts, "MAX_TOKENS", 24)
        export_model(source, folder, precision=precision)
    return folder


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An fp32 bundle whose greedy answers end."""
    root = tmp_path_factory.mktemp("self-test")
    (root / "source").mkdir()
    return _export(save_talker(root / "source", end=0.6), root / "bundle", "fp32")


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int8 bundle with an int8 cache."""
    root = tmp_path_factory.mktemp("self-test-int8")
    (root / "source").mkdir()
    return _export(save_tiny_chat(root / "source"), root / "bundle", "int8")


@pytest.mark.parametrize("name", ["talker", "quantized"])
def test_a_bundle_passes_where_it_was_exported(
    name: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = request.getfixturevalue(name)
    result = self_test(bundle, threads=1)
    assert result.passed
    assert [check.holds for check in result.checks] == [True] * 3
    assert cli.main(["--self-test", str(bundle), "--threads", "1"]) == 0
    assert "self-test passed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "change", "caught"),
    [
        (
            "quantized",
            broken.change_tensor("layers.1.mlp.down.scales", broken.swap_rows),
            "logits",
        ),
        ("quantized", broken.change_tensor("layers.1.key_scale", broken.double), "logits"),
        ("quantized", broken.change_tensor("layers.0.value_scale", broken.double), "logits"),
        ("quantized", broken.change_tensor("rotary.0.cos", broken.halve_frequencies), "logits"),
        ("talker", broken.change_tensor("lm_head.weight", broken.transpose_storage), "logits"),
        ("talker", broken.without_end_of_turn, "answers"),
        ("talker", broken.without_generation_prompt, "prompts"),
    ],
    ids=["scales", "key-scale", "value-scale", "rope", "head", "end-of-turn", "template"],
)
def test_a_broken_bundle_is_caught(
    name: str,
    change: Callable[[Path], None],
    caught: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = broken.copied(request.getfixturevalue(name), tmp_path / "broken", change)
    result = self_test(bundle, threads=1)
    assert caught in [check.name for check in result.checks if check.holds is False]
    assert cli.main(["--self-test", str(bundle), "--threads", "1", "--json"]) == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [check["holds"] for check in checks] == [check.holds for check in result.checks]


def test_an_older_bundle_is_compared_with_its_source(quantized: Path, tmp_path: Path) -> None:
    def without_record(folder: Path) -> None:
        (folder / "self_test.json").unlink()

    bundle = broken.copied(quantized, tmp_path / "older", without_record)
    result = self_test(bundle, threads=1)
    (check,) = result.checks
    assert (check.name, check.holds) == ("logits", True)
    assert "from the source" in check.detail


def test_without_a_sample_nothing_is_compared(talker: Path, tmp_path: Path) -> None:
    def without_either(folder: Path) -> None:
        (folder / "self_test.json").unlink()
        (folder / "gate.npz").unlink()

    result = self_test(broken.copied(talker, tmp_path / "bare", without_either), threads=1)
    assert (result.passed, result.compared) == (True, False)
    assert "nothing to compare" in result.lines()[-1]


def test_the_server_does_not_serve_a_bundle_that_differs(
    talker: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("starlette", reason="needs edgelm[serve]")
    from edgelm.runtime.server import cli as server

    served = list[Path]()
    monkeypatch.setattr(server, "serve", lambda lm, settings: served.append(lm.folder))
    given = ["--self-test", "--threads", "1"]
    assert server.main([str(talker), *given]) == 0
    assert served == [talker]
    bundle = broken.copied(talker, tmp_path / "broken", broken.without_end_of_turn)
    assert server.main([str(bundle), *given]) == 1
    assert served == [talker]
    assert "the self-test of" in capsys.readouterr().err


def test_another_top_token_agrees_only_where_both_are_nearly_as_likely() -> None:
    tokens = np.array([[7, 3, 5]] * 6)
    likely = np.log([0.4, 0.3, 0.2])
    far = np.log([0.6, 0.3, 0.05])
    logprobs = np.stack([likely, likely, far, likely, likely, likely])
    ours = Predictions(logprobs, np.array([7, 7, 7, 7, 9, 9]), logprobs[:-1, 0])
    # The same; 0.29 nats apart; 0.69 apart; ours or the recorded one not among the tokens, or both.
    recorded = np.array([7, 3, 3, 8, 7, 8])
    assert agree(ours, recorded, tokens).tolist() == [True, True, False, False, False, False]
    assert agree(ours, np.array([7, 7, 7, 7, 9, 9]), tokens).all()
