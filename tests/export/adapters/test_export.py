"""Exports with adapters apart from the weights: the bundle, its gate, and what is refused."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

import edgelm
from edgelm.bundle import read_manifest, verify
from edgelm.checkpoint.adapter.lora import read_lora
from edgelm.checkpoint.adapter.merge import merged
from edgelm.checkpoint.source import open_checkpoint
from edgelm.errors import BadBundle, BadCheckpoint, BadInput, GateFailed, UnknownName
from edgelm.export.adapters import factors, write
from edgelm.export.adapters.factors import GroupFactors
from edgelm.export.cli import main
from edgelm.export.pipeline import export_model
from edgelm.export.source.reference import Reference
from tests.checkpoints.adapters import modules_of, random_factors, save_adapter

TOKENS = np.arange(4, 44)


@pytest.fixture(scope="module")
def adapters(tiny_chat: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two of different ranks and modules."""
    folder, source = tmp_path_factory.mktemp("adapters"), open_checkpoint(tiny_chat)
    every = modules_of(source)
    few = [name for name in every if name.endswith(("q_proj", "up_proj"))]
    return {
        "pirate": save_adapter(folder / "pirate", random_factors(source, every)),
        "poet.2": save_adapter(
            folder / "poet", random_factors(source, few, rank=3, seed=1), r=3, use_rslora=True
        ),
    }


@pytest.fixture(scope="module")
def bundle(
    tiny_chat: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("switchable") / "bundle"
    options = [f"--adapter={name}={path}" for name, path in adapters.items()]
    command = [str(tiny_chat), "-o", str(folder), "--precision", "fp32", "--switchable"]
    assert main([*command, *options]) == 0
    return folder


def expected(source: Path, adapter: Path | None) -> torch.Tensor:
    """Logits of the source with an adapter merged, or without one."""
    checkpoint = open_checkpoint(source)
    reference = Reference(merged(checkpoint, read_lora(adapter)) if adapter else checkpoint)
    states = reference.hidden_states(torch.from_numpy(TOKENS)[None])[0]
    return reference.logits(states, reference.head())


def test_the_bundle_computes_what_its_source_does(
    tiny_chat: Path, adapters: dict[str, Path], bundle: Path
) -> None:
    chosen: list[tuple[str | None, Path | None]] = [(None, None), *adapters.items()]
    with edgelm.load(bundle, threads=1) as lm:
        assert lm.adapters == ("pirate", "poet.2")
        for name, folder in chosen:
            lm.session.use_adapter(lm._adapters.find(name))
            logits = torch.from_numpy(lm.session.advance(TOKENS, logits=len(TOKENS)).copy())
            wanted = expected(tiny_chat, folder)
            assert float((logits - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())
            lm.session.rewind(0)


def test_manifest_and_card(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    verify(bundle, manifest)
    assert [(one.name, one.file, one.rank) for one in manifest.adapters] == [
        ("pirate", "adapters/pirate.safetensors", 12),  # of q, k and v side by side
        ("poet.2", "adapters/poet.2.safetensors", 3),
    ]
    for one in manifest.adapters:
        assert one.gate is not None
        assert one.gate.passed
        assert one.gate.effect == pytest.approx(1, abs=1e-3)
        assert one.base == "somebody/tiny"
    card = (bundle / "README.md").read_text()
    assert '`lm.generate(..., adapter="pirate")`' in card


def test_without_adapters_the_graph_is_as_it_was(tiny_chat: Path, tmp_path: Path) -> None:
    manifest = export_model(tiny_chat, tmp_path / "bundle", precision="fp32")
    assert manifest.adapters == ()
    assert manifest.graph.low_rank == ()
    assert b"adapter" not in (tmp_path / "bundle" / "model.onnx").read_bytes()


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantized(
    tiny_chat: Path, adapters: dict[str, Path], tmp_path: Path, precision: str
) -> None:
    """With an 8-bit cache, whose factors of keys and values are folded into an adapter, too."""
    manifest = export_model(
        tiny_chat,
        tmp_path / "bundle",
        precision=precision,
        gate="off",
        switchable_adapters=adapters,
    )
    assert manifest.kv == "int8"
    for one in manifest.adapters:
        assert one.gate is not None
        assert one.gate.effect == pytest.approx(1, abs=0.1 if precision == "int8" else 0.25)


@pytest.mark.parametrize("factor", [-1.0, 0.5, 2.0])
def test_a_wrong_scale_or_sign_fails_the_gate(
    tiny_chat: Path,
    adapters: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    factor: float,
) -> None:
    real = factors.group_factors

    def scaled(*given: Any) -> GroupFactors:
        down, up = real(*given)
        return GroupFactors(down, up * factor)

    monkeypatch.setattr(write, "group_factors", scaled)
    faint = tmp_path / "faint"  # an effect far below what the gate's KL shows
    source = open_checkpoint(tiny_chat)
    save_adapter(faint, random_factors(source, ["model.layers.1.mlp.down_proj"]), lora_alpha=0.5)
    message = "the adapter faint failed its gate.* top-1 of at least 94.0%, perplexity up to ×1.02"
    with pytest.raises(GateFailed, match=message):
        export_model(
            tiny_chat, tmp_path / "bundle", precision="int8", switchable_adapters={"faint": faint}
        )
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--adapter", "A", "--adapter", "A"], "2 adapters were given, but only one can be merged"),
        (["--switchable"], "--switchable needs adapters: --adapter NAME=DIR"),
        (["--switchable", "--adapter", "A"], "with --switchable expected NAME=DIR"),
        (["--switchable", "--adapter", "a=A", "--adapter", "A=A"], "2 adapters are named a"),
        (["--switchable", "--adapter", "../a=A"], "the adapter name '../a' cannot be used"),
        (
            ["--switchable", "--adapter", "a=A", "--target", "jetson-orin", "--plan"],
            "adapters cannot be switched on tensorrt: only ONNX Runtime on a CPU",
        ),
        (["--switchable", "--adapter", "a=none", "--plan"], "has no adapter_config.json"),
    ],
)
def test_refused_options(
    tiny_chat: Path,
    adapters: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    pirate = str(adapters["pirate"])
    named = [pirate if one == "A" else one.replace("=A", f"={pirate}") for one in options]
    assert main([str(tiny_chat), "-o", str(tmp_path / "bundle"), *named]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"model.norm.weight": torch.ones(64)}, "it replaces model.norm.weight"),
        (
            {
                "model.embed_tokens.lora_embedding_A": torch.ones(4, 320),
                "model.embed_tokens.lora_embedding_B": torch.ones(64, 4),
            },
            "it changes the embedding",
        ),
        (
            {
                "model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(4, 64),
                "model.layers.0.mlp.up_proj.lora_B.weight": torch.ones(96, 4),
                "model.layers.0.mlp.up_proj.lora_magnitude_vector": torch.ones(96),
            },
            "it is a DoRA",
        ),
        (
            {
                "model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(4, 60),
                "model.layers.0.mlp.up_proj.lora_B.weight": torch.ones(96, 4),
            },
            "does not belong to",
        ),
    ],
)
def test_adapters_that_cannot_be_switched(
    tiny_chat: Path, tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    adapter = save_adapter(tmp_path / "adapter", tensors, use_dora="DoRA" in message)
    with pytest.raises(BadCheckpoint, match=message):
        export_model(tiny_chat, tmp_path / "bundle", switchable_adapters={"one": adapter})


def test_an_unknown_adapter_and_one_that_the_bundle_lacks(bundle: Path) -> None:
    with edgelm.load(bundle, threads=1) as lm:
        with pytest.raises(UnknownName, match=r"unknown adapter 'x'; this bundle has pirate, poet"):
            lm.generate("Hi", adapter="x", max_tokens=1)
        with pytest.raises(BadInput, match="unknown adapter"):
            lm.chat(adapter="x")


def change(bundle: Path, **fields: Any) -> None:
    """Change the first adapter's record; the manifest's own hash goes."""
    values = json.loads((bundle / "bundle.json").read_text())
    values["adapters"][0] |= fields
    del values["sha256"]
    (bundle / "bundle.json").write_bytes(msgspec.json.encode(values))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"file": "adapters/../../x.safetensors"}, "expected 'adapters/pirate.safetensors'"),
        ({"name": "poet.2", "file": "adapters/poet.2.safetensors"}, "two adapters are named"),
        ({"name": "POET.2", "file": "adapters/POET.2.safetensors"}, "two adapters are named"),
        ({"name": "gone", "file": "adapters/gone.safetensors"}, "does not list"),
        ({"name": "a/b"}, "damaged"),
    ],
)
def test_a_changed_record(
    bundle: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    from shutil import copytree

    copy = copytree(bundle, tmp_path / "bundle")
    change(copy, **fields)
    with pytest.raises(BadBundle, match=message):
        edgelm.load(copy)


def test_a_damaged_file(bundle: Path, tmp_path: Path) -> None:
    from shutil import copyfile, copytree

    copy = copytree(bundle, tmp_path / "bundle")
    path = copy / "adapters" / "pirate.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(BadBundle, match="does not match its SHA-256"):
        edgelm.load(copy)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadBundle, match="truncated or not a safetensors file"):
        edgelm.load(copy, check_hashes=False)
    # Of other sizes than the graph's.
    copyfile(copy / "adapters" / "poet.2.safetensors", path)
    save_wrong(path)
    with pytest.raises(BadBundle, match=r"expected F32 of 64 inputs"):
        edgelm.load(copy, check_hashes=False)


def save_wrong(path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(path)
    save_file({name: one[:, :2] for name, one in tensors.items()}, path)
