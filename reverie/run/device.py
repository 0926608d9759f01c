"""Which device a run computes on, and how."""

from __future__ import annotations

import torch

from reverie import native
from reverie.types import DeviceError


def choose_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is a GPU if there is one. Raises DeviceError where it is missing."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device {name} is unknown; use --device auto, cpu, cuda or cuda:<number>")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device {name} is not available: this machine has {torch.cuda.device_count()} CUDA devices; "
                          "use --device cpu or auto")  # fmt: skip
    return device


def set_up(threads: int, kernels: str) -> None:
    """Chooses, for the whole process, CPU threads (0: as torch does) and whether native kernels serve (``auto``)."""
    if threads:
        torch.set_num_threads(threads)
    native.use(kernels == "auto")
