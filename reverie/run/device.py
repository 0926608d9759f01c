"""Which device a run computes on."""

from __future__ import annotations

import torch

from reverie.types import DeviceError


def choose_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is a GPU if there is one. Raises DeviceError where it is missing."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device {name} is not available: this machine has {torch.cuda.device_count()} CUDA devices; "
                          "use --device cpu or auto")  # fmt: skip
    return device
