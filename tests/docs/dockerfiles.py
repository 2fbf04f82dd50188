"""Dockerfiles, read as far as tests look at them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

_KNOWN = {"ADD", "ARG", "CMD", "COPY", "ENV", "FROM", "RUN", "SHELL"}
_KNOWN |= {"EXPOSE", "HEALTHCHECK", "USER"}
_USED = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """Instructions in order, their words joined; comments and line ends are gone."""

    instructions: tuple[tuple[str, str], ...]

    def of(self, kind: str) -> list[str]:
        """What follows every `kind`."""
        return [text for name, text in self.instructions if name == kind]

    def pairs(self, kind: str) -> dict[str, str]:
        """NAME=VALUE of ARG or ENV; ARG without a value has an empty one."""
        words = [word for text in self.of(kind) for word in shlex.split(text)]
        return {name: value for name, _, value in (word.partition("=") for word in words)}

    def undeclared(self) -> set[str]:
        """Variables that are used before ARG, ENV or a shell's `for` declares them."""
        known, missing = {"PATH"}, set()
        for kind, text in self.instructions:
            if kind == "RUN":
                known |= set(re.findall(r"\bfor (\w+) in\b", text))
            missing |= set(_USED.findall(text)) - known
            if kind in ("ARG", "ENV"):
                known |= {word.partition("=")[0] for word in shlex.split(text)}
        return missing


def read_dockerfile(path: Path) -> Dockerfile:
    """Read the instructions of a Dockerfile; raises ValueError for an unknown one."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found = []
    for line in filter(None, joined.splitlines()):
        kind, _, text = line.partition(" ")
        if kind not in _KNOWN:
            raise ValueError(f"{path}: unknown instruction {kind!r}")
        found.append((kind, text.strip()))
    return Dockerfile(tuple(found))
