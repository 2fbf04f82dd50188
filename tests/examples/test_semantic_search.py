"""examples/semantic_search.py on a tiny embedding model."""

from pathlib import Path

from edgelm.export.pipeline import export_model
from tests.checkpoints.sentence_folders import save_sentence_model
from tests.examples.test_examples import run


def test_passages_come_nearest_first(tmp_path: Path) -> None:
    source = save_sentence_model(tmp_path / "source")
    export_model(source, tmp_path / "bundle", precision="fp32", gate="off")
    done = run("semantic_search.py", tmp_path / "bundle", "Bread rises because of yeast")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    cosines = [float(line.split()[0]) for line in lines]
    assert len(lines) == 4
    assert cosines == sorted(cosines, reverse=True)
    assert all(-1 <= one <= 1 for one in cosines)
