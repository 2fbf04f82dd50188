"""What a check reads: the record of the machine, the machine itself, and the bundle."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from edgelm.bundle import Manifest
from edgelm.devices.checks.verdict import Verdict
from edgelm.devices.detection.machine import Machine
from edgelm.devices.detection.modules import SOCS
from edgelm.devices.detection.nvidia import UNREAD_GPU
from edgelm.devices.detection.probes import Probes


@dataclass(frozen=True)
class Context:
    """What a check reads. `manifest` is that of the bundle that should run here, if any."""

    machine: Machine
    probes: Probes
    manifest: Manifest | None = None

    @property
    def has_gpu(self) -> bool:
        """Whether there is an NVIDIA GPU, even one that detection could not read."""
        unread = any(entry.what == UNREAD_GPU for entry in self.machine.unread)
        return bool(self.machine.gpus) or self.machine.jetson is not None or unread

    @property
    def compute_capabilities(self) -> tuple[int, ...]:
        """Compute capabilities of the GPUs, times ten; empty if unknown."""
        known = {gpu.sm for gpu in self.machine.gpus if gpu.sm}
        if not known and self.machine.jetson and self.machine.jetson.soc in SOCS:
            known = {SOCS[self.machine.jetson.soc].sm}
        return tuple(sorted(known))

    @property
    def shares_memory(self) -> bool:
        """Whether the GPU shares the memory of the CPU."""
        shared = any(gpu.memory_kind == "shared" for gpu in self.machine.gpus)
        return shared or self.machine.jetson is not None

    def version(self, package: str) -> str | None:
        """The installed version of a distribution, or None."""
        return self.machine.packages.get(package) or self.probes.version(package)

    def variable(self, name: str) -> str | None:
        """An environment variable."""
        given = self.probes.environment
        return (os.environ if given is None else given).get(name)

    def python(self, code: str) -> str:
        """The last line that a Python program prints in its own process; OSError if it fails."""
        try:
            lines = self.probes.run([sys.executable, "-c", code]).strip().splitlines()
        except OSError as error:
            # The text begins with the whole command, including the program: '[...]' timed out.
            _, _, failure = str(error).rpartition("]'")
            raise OSError(f"Python: {failure.strip()}") from None
        return lines[-1] if lines else ""

    def unread(self, word: str) -> str:
        """The reason why detection could not read what `word` names."""
        for entry in self.machine.unread:
            if word in entry.what:
                return f"{entry.where}: {entry.why}"
        return "detection did not find it"


# What to do where detection could not read something of a Jetson.
MOUNT_FILES = (
    "in a container, mount what detection reads (docker run -v /etc/nv_tegra_release:/etc/"
    "nv_tegra_release:ro -v /etc/nvpmodel.conf:/etc/nvpmodel.conf:ro -v /var/lib/nvpmodel:/var/lib/"
    "nvpmodel:ro); otherwise run the doctor on the system itself, as root if need be"
)


# None where a check does not apply to the machine.
Check = Callable[[Context], Verdict | None]
