"""The model card says how to install every engine that a bundle may be for."""

from edgelm.devices.kernels import KERNELS
from edgelm.export.bundle import model_card


def test_every_engine_has_install_lines() -> None:
    assert set(model_card._HOW) == set(KERNELS)
