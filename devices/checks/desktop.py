"""Whether a desktop takes memory that GPU and CPU share."""

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
    "sudo systemctl set-default multi-user.target && sudo reboot (back: graphical.target); until "
    "then: sudo systemctl isolate multi-user.target"
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
            f"a desktop runs ({', '.join(names)}) and takes at least "
            f"{format_bytes(sum(taken for _, taken in running))}",
            why="memory is shared with the GPU; without a desktop a Jetson has 100 to 800 MB more",
            fix=_HEADLESS,
        )
    try:
        target = context.probes.run(["systemctl", "get-default"]).strip()
    except OSError as reason:
        return unknown("whether the machine starts a desktop", why=str(reason))
    if target == "graphical.target":
        return ok("no desktop runs now; the machine is set to start one at boot")
    return ok(f"no desktop runs, the machine starts into {target}")


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:  # the process has ended meanwhile
        return ""


def _private_bytes(process: Path) -> int:
    """What nobody else uses of a process's memory: a lower bound of what its end gives back."""
    for line in _read(process / "status").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0
