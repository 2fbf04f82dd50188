"""The Dockerfiles fit the package, the Jetson guide and the folders that edgelm writes to.

They cannot be built here: they need NVIDIA's images and an Arm machine.
"""

import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest

import edgelm
from edgelm.python310 import tomllib
from edgelm.runtime.engines import finalize, trust
from edgelm.runtime.engines.cuda import Gpu
from tests.docs.dockerfiles import Dockerfile, read_dockerfile
from tests.docs.pages import ROOT, blocks, prose

FILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
PAGE = ROOT / "docs" / "how-to" / "jetson-container.md"
GUIDE = ROOT / "docs" / "jetson.md"  # has the table of versions
SHELL = [
    shlex.split(line, comments=True)
    for language, text in blocks(PAGE)
    if not language
    for line in re.sub(r"\\\n\s*", " ", text).splitlines()
]
BUILDS = [words for words in SHELL if words[:2] == ["docker", "build"]]
RUNS = [words for words in SHELL if words[:2] == ["docker", "run"]]


def values(words: list[str], option: str) -> list[str]:
    return [words[index + 1] for index, word in enumerate(words) if word == option]


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def dockerfile(request: pytest.FixtureRequest) -> Dockerfile:
    return read_dockerfile(request.param)


def test_there_is_one_for_each_jetpack() -> None:
    assert [path.name for path in FILES] == ["Dockerfile.jetpack6", "Dockerfile.jetpack7"]


def test_the_base_image_is_an_argument_with_a_tag(dockerfile: Dockerfile) -> None:
    assert dockerfile.instructions[0][0] == "ARG"
    assert dockerfile.of("FROM") == ["${BASE}"]
    assert re.fullmatch(r"[\w./-]+:[\w.-]+", dockerfile.pairs("ARG")["BASE"])


def test_every_variable_is_declared_before_its_use(dockerfile: Dockerfile) -> None:
    assert dockerfile.undeclared() == set()


def test_it_copies_the_wheel_of_this_version(dockerfile: Dockerfile) -> None:
    (copied,) = dockerfile.of("COPY")
    pattern, folder = copied.split()
    assert fnmatch(f"edgelm-{edgelm.__version__}-py3-none-any.whl", pattern)
    assert any(f"{folder}{pattern}" in command for command in dockerfile.of("RUN"))


def test_it_installs_extras_that_exist(dockerfile: Dockerfile) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"edgelm-\*\.whl\[([\w,]+)\]", " ".join(dockerfile.of("RUN")))
    extras = {extra for names in named for extra in names.split(",")}
    assert extras <= set(project["optional-dependencies"])


def test_the_environment_sees_the_systems_tensorrt(dockerfile: Dockerfile) -> None:
    commands = " ".join(dockerfile.of("RUN"))
    assert "python3-libnvinfer" in commands
    assert "python3 -m venv --system-site-packages /opt/edgelm" in commands
    assert dockerfile.pairs("ENV")["PATH"].startswith("/opt/edgelm/bin:")


def test_its_default_command_is_one_of_ours(dockerfile: Dockerfile) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (command,) = dockerfile.of("CMD")
    assert re.findall(r'"([^"]+)"', command)[0] in project["scripts"]


def test_cuda_bindings_are_those_of_the_guide(dockerfile: Dockerfile) -> None:
    version = dockerfile.pairs("ARG")["CUDA_BINDINGS"]
    assert f"`=={version}`" in prose(GUIDE)


def test_what_it_writes_lies_on_volumes_of_the_guide(
    dockerfile: Dockerfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in dockerfile.pairs("ENV").items():
        if name.startswith("XDG_"):
            monkeypatch.setenv(name, value)
    timing = finalize._timing_cache("tensorrt", "10.3", Gpu("Orin", 87))
    assert len(RUNS) == 2
    for words in RUNS:
        targets = [Path(volume.rpartition(":")[2]) for volume in values(words, "-v")]
        for written in (trust._store(), timing, Path("/bundle/bundle.json")):
            assert any(target in written.parents for target in targets), written
        assert values(words, "--runtime") == ["nvidia"]


@pytest.mark.parametrize("words", BUILDS, ids=" ".join)
def test_the_guide_builds_files_and_arguments_that_exist(words: list[str]) -> None:
    (path,) = values(words, "-f")
    declared = read_dockerfile(ROOT / path).pairs("ARG")
    given = [argument.partition("=")[0] for argument in values(words, "--build-arg")]
    assert set(given) <= set(declared)
    assert words[-1] == "dist/"


def test_the_guide_builds_each_and_runs_what_it_builds() -> None:
    assert {path for words in BUILDS for path in values(words, "-f")} == {
        str(path.relative_to(ROOT)) for path in FILES
    }
    built = {tag for words in BUILDS for tag in values(words, "-t")}
    assert all(built & set(words) for words in RUNS)


def test_an_unknown_instruction_is_refused(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM a:1\nRUNN x\n")
    with pytest.raises(ValueError, match="unknown instruction 'RUNN'"):
        read_dockerfile(tmp_path / "Dockerfile")


def test_a_variable_that_is_not_declared_is_found(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("ARG A=1\nFROM x:${A}\nRUN echo ${B} ${A}\nARG B=2\n")
    assert read_dockerfile(tmp_path / "Dockerfile").undeclared() == {"B"}
