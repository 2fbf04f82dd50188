"""The memory of a bundle with and without its draft model, measured in processes of their own."""

import re
import sys
from pathlib import Path

import pytest

from bench.studies.speculation import draft_memory
from edgelm.bundle import read_manifest
from edgelm.devices.planner.memory.memory_need import draft_bytes, loaded_bytes

ROW = re.compile(r"(off|draft): (\d+) MB measured, (\d+) MB planned \([+-]\d+\.\d%\)")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_both_cases_are_measured_and_planned(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(bundle)
    context = manifest.limits.context
    monkeypatch.setattr(sys, "argv", ["study", str(bundle), "--context", str(context)])
    draft_memory.main()
    rows = [ROW.fullmatch(line) for line in capsys.readouterr().out.splitlines()]
    assert [row and row[1] for row in rows] == ["off", "draft"]
    own = loaded_bytes(manifest, context)
    added = draft_bytes(read_manifest(bundle / "draft"), manifest, context)
    for row, planned in zip(rows, (own, own + added), strict=True):
        assert row
        assert int(row[3]) == round(planned / 2**20)
        # Of a tiny model only the process counts, and the libraries of its system.
        assert 40 < int(row[2]) < 400
