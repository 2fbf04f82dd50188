"""What a plan says about its device besides the figures."""

from edgelm.devices.detection.modules import UNSUPPORTED
from edgelm.devices.profile import Profile

_SOCS = {"xavier": "tegra194"}


def unsupported(profile: Profile) -> str:
    """Why edgelm cannot run on the GPU of a device; empty where it can."""
    soc = _SOCS.get(profile.jetson)
    return UNSUPPORTED[soc] if soc else ""


def device_notes(profile: Profile) -> tuple[str, ...]:
    """What to know of a device on which edgelm does not run."""
    why = unsupported(profile)
    if not why:
        return ()
    return (
        f"edgelm does not run on the GPU of this device: {why}; the plan is for "
        "NVIDIA's own tools (docs/targets.md#xavier)",
    )
