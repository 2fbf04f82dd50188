"""The packages: every folder of code in the top-level packages. The rest: pyproject.toml."""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
PACKAGES = {"core": "edgelm"} | {
    name: f"edgelm.{name}" for name in ("bench", "compress", "devices", "export", "runtime")
}
# Folders of data alone are packages to setuptools, too; it warns about those that are not listed.
CODE_AND_DATA = {".py", ".toml", ".jsonl"}
NOT_SHIPPED = "edgelm.bench.studies"  # and below: experiments, run from a checkout


def packages() -> list[str]:
    """Dotted names of the packages of the wheel."""
    names = set()
    for folder, package in PACKAGES.items():
        for path in (ROOT / folder).rglob("*.*"):
            if path.suffix not in CODE_AND_DATA:
                continue
            below = path.parent.relative_to(ROOT / folder).parts
            names.add(".".join([package, *below]))
    return sorted(name for name in names if not f"{name}.".startswith(f"{NOT_SHIPPED}."))


if __name__ == "__main__":
    setup(packages=packages())
