"""What a plan says about its device beside the figures."""

from edgelm.devices.detection.modules import UNSUPPORTED
from edgelm.devices.profile import Profile

_SOCS = {"xavier": "tegra194"}


def device_notes(profile: Profile) -> tuple[str, ...]:
    """Whether edgelm runs on the device at all."""
    soc = _SOCS.get(profile.jetson)
    if soc is None:
        return ()
    return (
        f"edgelm does not run on the GPU of this device: {UNSUPPORTED[soc]}; the plan is for "
        "NVIDIA's own tools (docs/targets.md#xavier)",
    )
