"""A desktop in the memory that the GPU needs."""

from pathlib import Path

import msgspec

from edgelm.devices.checks.host.desktop import desktop
from tests.devices.checks.recorded import LAPTOP, ORIN_NANO, RTX_4060, context


def process(number: int, name: str, anonymous_kb: int) -> dict[str, str]:
    status = f"Name:\t{name}\nVmRSS:\t999999 kB\nRssAnon:\t{anonymous_kb} kB\n"
    return {f"/proc/{number}/comm": f"{name}\n", f"/proc/{number}/status": status}


def test_desktop_runs(tmp_path: Path) -> None:
    files = process(900, "Xorg", 80_000) | process(950, "gnome-shell", 220_000)
    files |= process(1000, "python3", 500_000)
    verdict = desktop(context(ORIN_NANO, tmp_path, files=files))
    assert verdict
    assert verdict.severity == "warning"
    assert verdict.what == "a desktop is running (Xorg, gnome-shell) and uses at least 307.2 MB"
    assert "set-default multi-user.target" in verdict.fix


def test_two_processes_of_one_name_count_twice(tmp_path: Path) -> None:
    files = process(900, "Xorg", 50_000) | process(901, "Xorg", 50_000)
    verdict = desktop(context(ORIN_NANO, tmp_path, files=files))
    assert verdict
    assert verdict.what == "a desktop is running (Xorg) and uses at least 102.4 MB"


def test_headless(tmp_path: Path) -> None:
    verdict = desktop(
        context(
            ORIN_NANO,
            tmp_path,
            files=process(1, "systemd", 5_000),
            answers={"get-default": "multi-user.target\n"},
        )
    )
    assert verdict
    assert verdict.severity == "ok"
    assert verdict.what == "no desktop is running; the machine boots into multi-user.target"


def test_desktop_only_at_the_next_boot(tmp_path: Path) -> None:
    verdict = desktop(context(ORIN_NANO, tmp_path, answers={"get-default": "graphical.target\n"}))
    assert verdict
    assert verdict.severity == "ok"
    assert "at boot" in verdict.what


def test_process_that_ends_meanwhile(tmp_path: Path) -> None:
    files = {"/proc/7/comm": "Xorg\n"}
    verdict = desktop(
        context(ORIN_NANO, tmp_path, files=files, answers={"get-default": "multi-user.target"})
    )
    assert verdict
    assert verdict.severity == "ok"


def test_container_without_systemd(tmp_path: Path) -> None:
    verdict = desktop(context(ORIN_NANO, tmp_path))
    assert verdict
    assert verdict.severity == "unknown"
    assert verdict.why == "systemctl: not there"


def test_memory_of_its_own(tmp_path: Path) -> None:
    assert desktop(context(LAPTOP, tmp_path, files=process(9, "Xorg", 90_000))) is None
    shared = msgspec.structs.replace(RTX_4060, name="GB10", memory_kind="shared")
    spark = msgspec.structs.replace(LAPTOP, gpus=(shared,))
    verdict = desktop(context(spark, tmp_path))
    assert verdict
    assert verdict.severity == "warning"
