"""What the Jetson guide quotes is what our programs print; its versions are in our tables."""

import json
import re
from pathlib import Path

import pytest

from edgelm.devices.cli import main
from edgelm.devices.detection.detect import detect
from edgelm.devices.detection.jetpack import jetpack_of
from edgelm.devices.doctor import describe, examine
from tests.devices.published.configs import DENSE
from tests.devices.recorded_machines import recorded
from tests.docs.pages import ROOT, blocks, prose

PAGE = ROOT / "docs" / "jetson.md"
CONTAINER = ROOT / "docs" / "how-to" / "jetson-container.md"
SOURCES = ROOT / "docs" / "reference" / "jetson-sources.md"
TABLE = re.compile(r"^\| [67]\..*\|$", re.MULTILINE)
GPU = "/sys/class/devfreq/17000000.gpu"
# The recorded Orin Nano Super as it comes: 15 W, floating clocks, zram and no swap file.
NEW_BOARD = {
    "/etc/nv_tegra_release": "# R36 (release), REVISION: 5.0, GCID: 1, BOARD: generic\n",
    "/var/lib/nvpmodel/status": "pmode:0000 fmode:quiet",
    f"{GPU}/min_freq": "306000000\n",
    f"{GPU}/max_freq": "612000000\n",
    "/proc/swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 3901440 0 5\n",
    "/sys/block/zram0/mm_stat": "4096 64 400000 0 0 0 0\n",
}
ANSWERS = {
    "systemctl get-default": "multi-user.target\n",
    "df -Pk .": "Filesystem\n/dev/sda 9 1 99999999 1% /\n",
}


def quotes() -> list[str]:
    return [text for language, text in blocks(PAGE) if language == "text"]


def plan_commands() -> list[list[str]]:
    code = "".join(text for language, text in blocks(PAGE) if not language)
    return [line.split()[1:] for line in code.splitlines() if line.startswith("edge-devices plan")]


def test_the_plan_is_what_the_planner_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DENSE["qwen3-1.7b"].config()))
    ((plan, model, *options),) = plan_commands()
    assert (plan, model) == ("plan", "Qwen/Qwen3-1.7B")
    assert main(["plan", str(tmp_path), *options]) == 0
    assert quotes()[0] == capsys.readouterr().out


def test_the_warnings_are_what_the_doctor_prints(tmp_path: Path) -> None:
    probes = recorded("orin-nano-super", tmp_path, files=NEW_BOARD, commands=ANSWERS)
    assert quotes()[1].strip() == describe(examine(detect(probes), probes))


def test_the_table_agrees_with_detection() -> None:
    rows = [
        tuple(cell.strip() for cell in line.split("|")[1:]) for line in TABLE.findall(prose(PAGE))
    ]
    assert len(rows) == 4
    for names, releases, _, _, cuda, tensorrt, *_ in rows:
        for release in releases.split(", "):
            known = jetpack_of(f"{release}.0") or jetpack_of(release)
            assert known is not None, release
            assert known.jetpack[0] == names[0]
            assert (known.cuda, known.tensorrt) == (cuda, tensorrt)


def test_every_source_is_used_and_exists() -> None:
    text = "".join(page.read_text() for page in (PAGE, CONTAINER))
    used = {int(one) for one in re.findall(r"\[(\d+)\]\([\w./-]+jetson-sources.md#sources\)", text)}
    sources = SOURCES.read_text().split("## Sources")[1]
    listed = [int(number) for number in re.findall(r"^(\d+)\. ", sources, re.M)]
    assert listed == list(range(1, len(listed) + 1))
    assert used == set(listed)
