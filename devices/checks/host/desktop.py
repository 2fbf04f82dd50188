"""Whether a desktop uses memory that GPU and CPU share."""

from pathlib import Path

from edgelm.cli import format_bytes
from edgelm.devices.checks.context import Context
from edgelm.devices.checks.verdict import Verdict, ok, unknown, warning

# As in /proc/PID/comm, which ends after 15 characters.
_SESSION = {
    "Xorg",
    "Xwayland",
    "gnome-shell",
    "kwin_wayland",
    "kwin_x11",
    "lxpanel",
    "openbox",
    "pcmanfm",
    "plasmashell",
    "weston",
    "xfwm4",
}
_HEADLESS = (
    "sudo systemctl set-default multi-user.target && sudo reboot (to undo: graphical.target); "
    "until the next boot only: sudo systemctl isolate multi-user.target"
)


def desktop(context: Context) -> Verdict | None:
    """Whether a desktop session runs on a machine whose GPU has no memory of its own."""
    if not context.shares_memory:
        return None
    running = [
        (name, taken)
        for comm in context.probes.glob("/proc/[0-9]*/comm")
        if (name := _read(comm)) in _SESSION and (taken := _private_bytes(comm.parent))
    ]
    if running:
        names = sorted({name for name, _ in running})
        return warning(
            f"a desktop is running ({', '.join(names)}) and uses at least "
            f"{format_bytes(sum(taken for _, taken in running))}",
            why="the GPU shares this memory; without a desktop a Jetson has 100 to 800 MB more",
            fix=_HEADLESS,
        )
    try:
        target = context.probes.run(["systemctl", "get-default"]).strip()
    except OSError as reason:
        return unknown(
            "whether the machine starts a desktop",
            why=str(reason),
            fix="on the system itself, not in a container: systemctl get-default",
        )
    if target == "graphical.target":
        return ok("no desktop is running now; the machine starts one at boot")
    return ok(f"no desktop is running; the machine boots into {target}")


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:  # the process has ended
        return ""


def _private_bytes(process: Path) -> int:
    """Memory that only this process uses: a lower bound of what is free after it ends."""
    for line in _read(process / "status").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0
