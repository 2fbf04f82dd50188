"""Who imports whom, core <- devices <- {compress, runtime <- export} <- bench, and the cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import edgelm

ROOT = Path(__file__).resolve().parents[2]
# package -> packages it may import, besides itself
ARROWS = {
    "core": set(),
    "devices": {"core"},
    "compress": {"core", "devices"},
    # Export measures every graph through the very session that will run it.
    "export": {"core", "devices", "runtime"},
    "runtime": {"core", "devices"},
    "bench": {"core", "devices", "compress", "export", "runtime"},
}
# What fits and what measures calculates with arrays; nothing of devices imports them but the
# commands, when they are called.
WITH_NUMPY = ("edgelm.devices.published", "edgelm.devices.calibration")
# The modules of core that calculate with tensors; all others do without torch.
WITH_TORCH = {
    "edgelm.checkpoint.meta_model",
    "edgelm.checkpoint.own_modules",
    "edgelm.checkpoint.quantized.unpack",
    *(
        f"edgelm.quantize.{name}"
        for name in ("awq", "expert_neurons", "expert_sums", "gptq", "grids", "hessians", "rtn")
    ),
}
HEAVY = ["torch", "transformers", "onnx", "onnx_ir", "safetensors", "gguf", "huggingface_hub"]


def imported(path: Path) -> set[str]:
    """Every module that a file imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            if node.module == "edgelm":  # `from edgelm import runtime`
                names |= {f"edgelm.{alias.name}" for alias in node.names}
    return names


def package_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ARROWS else "core"


def edges(package: str) -> set[tuple[str, str]]:
    """(file, module) for every import of another package."""
    return {
        (path.relative_to(ROOT).as_posix(), module)
        for path in (ROOT / package).rglob("*.py")
        for module in imported(path)
        if module.split(".")[0] == "edgelm" and package_of(module) != package
    }


@pytest.mark.parametrize("package", list(ARROWS))
def test_arrows(package: str) -> None:
    wrong = {edge for edge in edges(package) if package_of(edge[1]) not in ARROWS[package]}
    assert wrong == set()


def test_the_stub_types_every_public_name() -> None:
    """`import edgelm` finds by name what `__init__.pyi` imports from the same module."""
    stub = ast.parse((ROOT / "core/__init__.pyi").read_text())
    typed = {
        alias.name: node.module
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == vars(edgelm)["_MODULES"]


def says(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def modules_after(*names: str) -> set[str]:
    return set(says(f"import sys, {', '.join(names)}; print(*sys.modules)").split())


def modules_of(package: str) -> list[str]:
    """Every module of a package, `edgelm.runtime.engines.onnxruntime.ort` and so on."""
    names = []
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[1:] if package == "core" else parts  # the package itself
        names.append(".".join(["edgelm", *(part for part in parts if part != "__init__")]))
    return names


def test_core_imports_torch_only_where_it_calculates() -> None:
    names = set(modules_of("core"))
    assert names > WITH_TORCH
    loaded = modules_after(*sorted(names - WITH_TORCH))
    assert {"edgelm.quantize.precision", "edgelm.checkpoint.source"} <= loaded
    assert loaded.isdisjoint(HEAVY)


def test_runtime_runs_without_what_export_needs() -> None:
    loaded = modules_after(*modules_of("runtime"))
    assert "edgelm.runtime.engines.onnxruntime.ort" in loaded
    assert loaded.isdisjoint(HEAVY)
    assert not any(name.startswith(("edgelm.export", "edgelm.compress")) for name in loaded)


def test_devices_import_nothing_heavy() -> None:
    calculating = [name for name in modules_of("devices") if name.startswith(WITH_NUMPY)]
    light = [name for name in modules_of("devices") if name not in calculating]
    loaded = modules_after(*light)
    assert {"edgelm.devices.planner.plan", "edgelm.devices.cli"} <= loaded
    assert loaded.isdisjoint([*HEAVY, "onnxruntime", "numpy", *calculating])
    loaded = modules_after(*calculating)
    assert "numpy" in loaded
    assert loaded.isdisjoint([*HEAVY, "onnxruntime"])


def test_planning_a_folder_imports_nothing_heavy() -> None:
    loaded = modules_after("edgelm.checkpoint.source", "edgelm.export.cli")
    assert loaded.isdisjoint([*HEAVY, "onnxruntime", "tokenizers"])


def test_import_takes_less_than_a_tenth_of_a_second() -> None:
    code = (
        "import time; start = time.process_time(); import edgelm; "
        "print(time.process_time() - start)"
    )
    seconds = [
        float(subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60))
        for _ in range(5)
    ]
    assert min(seconds) < 0.1


def test_face_names_the_rooms() -> None:
    calls = {"compress_model", "export_model", "load", "plan"}
    types = {
        "Chat",
        "Chunk",
        "EdgeLMError",
        "LanguageModel",
        "Message",
        "Options",
        "Reply",
        "Sampling",
        "Stream",
    }
    assert set(edgelm.__all__) == {"__version__"} | calls | types
    with pytest.raises(AttributeError, match="module 'edgelm' has no attribute 'compress_all'"):
        _ = edgelm.compress_all  # type: ignore[attr-defined]


def test_no_public_name_is_a_module() -> None:
    # Importing a submodule binds its name in the package, over a function of the same name.
    names = {path.stem for path in (ROOT / "core").iterdir()} | set(ARROWS)
    assert not names & set(edgelm.__all__)
