"""Native kernels for CPUs: built on first use with the machine's C compiler, cached, and never required.

``kernels.c`` holds what dominates an update on a CPU once the matrices are small: the loops over time, stacks of
layers, and the optimizer's step. `library` is None where no compiler is found, or after `use(False)`; every caller
then computes the same in plain tensors, which is also the oracle of the tests.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ["-O3", "-march=native", "-ffast-math", "-fno-finite-math-only", "-fPIC"]
EXTRAS = [["-fopenmp", "-mprefer-vector-width=512", "-mrecip=none"], ["-fopenmp"], []]
"""Tried in turn: not every compiler has them. OpenMP is not linked: torch's own pool is already in the process."""
BLOCK = 24
"""Rows that one thread carries through a kernel together."""
_enabled = True


def use(enabled: bool) -> None:
    """Turns the kernels on or off for this process."""
    global _enabled
    _enabled = enabled


def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None."""
    return _load() if _enabled else None


def call(kernel: str, *arguments: Any) -> None:
    """Calls a kernel: contiguous tensors go as pointers, structures and numbers as ctypes sees them."""
    loaded = _load()
    assert loaded is not None
    getattr(loaded, kernel)(*(pointer(item) if isinstance(item, Tensor) else item for item in arguments))


def serves(*tensors: Tensor) -> bool:
    """Whether the kernels can compute with these tensors: single precision on a CPU."""
    return (
        all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and library() is not None
    )


@cache
def _load() -> ctypes.CDLL | None:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        log.info("no C compiler found: the native kernels are off, updates on a CPU take longer")
        return None
    for extras in EXTRAS:
        flags = [*FLAGS, *extras]
        path = _cache_folder() / f"kernels-{_fingerprint(compiler, flags)}.so"
        try:
            if not path.exists():
                _build(compiler, flags, path)
            return ctypes.CDLL(str(path))
        except (OSError, subprocess.SubprocessError) as error:
            reason = error
    log.warning("the native kernels could not be built (%s): updates on a CPU take longer", reason)
    return None


def _build(compiler: str, flags: Sequence[str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        compiled, linked = Path(folder) / "kernels.o", Path(folder) / "kernels.so"
        for command in (
            [compiler, *flags, "-c", str(SOURCE), "-o", str(compiled)],
            # Linked without -ffast-math, which would change the floating-point mode of the whole process.
            [compiler, "-shared", str(compiled), "-o", str(linked), "-lm"],
        ):
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        os.replace(linked, path)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reverie"


def _fingerprint(compiler: str, flags: Sequence[str]) -> str:
    """Changes with whatever changes the machine code: source, compiler, flags, processor."""
    cpu = Path("/proc/cpuinfo")
    features = next((line for line in cpu.read_text().splitlines() if line.startswith(("flags", "Features"))), "") \
        if cpu.exists() else platform.processor()  # fmt: skip
    parts = (SOURCE.read_text(), compiler, " ".join(flags), platform.machine(), features)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


# --- Arguments ---


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    """The address of a contiguous tensor; the caller keeps the tensor alive during the call."""
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())


def pack(matrix: Float[Tensor, "*blocks I O"]) -> Float[Tensor, "*blocks panels I lanes"]:
    """Cuts matrices into panels of columns, the order in which the kernels read them."""
    lanes = _lanes()
    padded = F.pad(matrix, (0, -matrix.shape[-1] % lanes))
    return padded.unflatten(-1, (-1, lanes)).transpose(-2, -3).contiguous()


@cache
def _lanes() -> int:
    loaded = _load()
    assert loaded is not None
    return loaded.lanes()
