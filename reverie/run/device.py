"""Which device a run computes on, and how."""

from __future__ import annotations

import ctypes
import gc
import logging
import math
import os
import re
import sys
import traceback
from pathlib import Path

import torch

from reverie import native
from reverie.errors import DeviceError

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).parents[1]

MAPPED, TRIMMED, PADDED = -3, -1, -2
"""Settings of mallopt: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD, in bytes."""

LARGEST_KEPT = 2**30, 2**25
"""What M_MMAP_THRESHOLD may be; older versions of the GNU C library refuse more than 32 MB."""

THREADS = torch.get_num_threads()
"""What torch chose when it was loaded."""

OBJECTS = 20_000
"""New objects after which Python looks for circles of them; after 700, as it does by itself, it takes 4 % of a small
update's time, and finds nothing."""

BINDINGS = {"GOMP_CPU_AFFINITY", "OMP_PROC_BIND", "OMP_PLACES"}
"""Environment variables by which OpenMP binds each of its threads to a core."""

NO_MEMORY = re.compile(
    "DefaultCPUAllocator|bad_alloc|could not create a (memory|primitive(?! descriptor))|ALLOC_FAILED|out of memory|"
    "can't start new thread|[Cc]annot allocate memory|unable to mmap|size calculation overflowed|array is too big"
)
"""What torch, oneDNN, CUDA, numpy and Python say of memory that cannot be had, where their error does not."""

LARGE = {
    "behavior/intrinsic": "intrinsic.features, intrinsic.units, or starts, samples and steps of empowerment",
    "world/modality/text": "env.text_length",
    "world/modality/audio": "the samples of a sound, or replay.length",
    "replay": "replay.batch_size or replay.length",
    "env": "env.envs, env.size or env.text_length",
}
"""Parts of the package, and what makes the arrays large that they ask for."""

LARGE_ANYWHERE = "replay.batch_size, env.envs or the sizes of world"

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux tells a container its share of the processor."""


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


def warn_of_precision(precision: str, device: torch.device) -> None:
    """Says so where half precision would be emulated: without AVX-512, torch multiplies bf16 30 to 60 times slower.

    Native kernels multiply in single precision there.
    """
    if precision != "fp32" and device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2":
        log.warning(
            "agent.precision = %s: this processor has no such products, fp32 is faster, often many times", precision
        )


def set_up(threads: int, kernels: str) -> None:
    """Chooses, for the whole process, CPU threads (0: as torch chose), at most `cores`, and native kernels.

    Freed memory is kept, and garbage collected less often.
    """
    torch.set_num_threads(min(threads or THREADS, cores()))
    native.use(kernels == "auto")
    keep_freed_memory()
    gc.set_threshold(OBJECTS)


def cores() -> int:
    """The processor cores that this process may use, or as many as a container's share of their time amounts to."""
    present = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else present
    if BINDINGS & os.environ.keys():  # then this thread may use one core, whatever the process may
        allowed = max(allowed, min(THREADS, present))
    return max(1, int(min(allowed, _share())))


def _share() -> float:
    """How many cores a container's limit amounts to, of control groups version 2 or 1; infinity where there is none."""
    try:
        if (CGROUP / "cpu.max").exists():
            time, period = (CGROUP / "cpu.max").read_text().split()
        else:
            time, period = ((CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(time) / int(period) if int(time) > 0 else math.inf
    except (OSError, ValueError):  # "max" is no limit
        return math.inf


def keep_freed_memory() -> None:
    """Lets the process reuse large arrays that it freed, instead of giving them back and asking for empty pages again.

    An update allocates the same arrays every time. Only the GNU C library has this choice; elsewhere nothing happens.
    """
    process = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(process, "gnu_get_libc_version"):
        return
    if any(process.mallopt(MAPPED, size) for size in LARGEST_KEPT):  # without it, the others would freeze a small one
        process.mallopt(TRIMMED, 2**31 - 1)
        process.mallopt(PADDED, 2**26)


def what_to_lower(error: BaseException) -> str:
    """The options that made an array too large, by the innermost part of the package that asked for it."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(PACKAGE):
            place = path.relative_to(PACKAGE).as_posix()
            if asked := next((options for part, options in LARGE.items() if place.startswith(part)), ""):
                return asked
    return LARGE_ANYWHERE


def lacks_memory(error: BaseException) -> bool:
    """Whether memory could not be had, or a thread for want of it: most libraries raise a RuntimeError then."""
    said = isinstance(error, RuntimeError | ValueError) and NO_MEMORY.search(str(error))
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or bool(said)
