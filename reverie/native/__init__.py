"""Native kernels for CPUs: built on first use with the machine's C compiler, cached, and never required.

The C files hold what dominates an update on a CPU while the matrices are small, or torch's products slow
(`faster_than_torch`): the loops over time, stacks of layers, two-hot heads, and the optimizer's step. Where products
are to be in bf16 and the processor has such products, the same files are built once more with them. `supports` is
false where no compiler is found, after `use(False)`, and for tensors that the kernels do not know; every caller then
computes the same in plain tensors, which is also the oracle of the tests.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

FOLDER, CPUINFO = Path(__file__).parent, Path("/proc/cpuinfo")
UNITS = ["layers.c", "rssm.c", "two_hot.c", "optimizer.c"]
HEADERS = ["products.h", "shared.h"]
COMPILERS = ["cc", "gcc", "clang"]
"""Looked for in turn, unless the environment names one as CC."""
FLAGS = ["-O3", "-march=native", "-ffast-math", "-fno-finite-math-only", "-fPIC"]
WIDE = ["-mprefer-vector-width=512", "-mrecip=none"]
EXTRAS = [["-fopenmp", *WIDE], ["-fopenmp"], WIDE, []]
"""Tried in turn: not every compiler has them. OpenMP is not linked: torch's own pool is already in the process."""
BLOCK = 24
"""Rows that one thread carries through a kernel together."""
LARGEST_MATRIX = 2**17
"""Numbers in a matrix above which torch's products are faster than ours, unless ours are `faster_than_torch`."""

_enabled = True


def use(enabled: bool) -> None:
    """Turns the kernels on or off for this process."""
    global _enabled
    _enabled = enabled


def version() -> str:
    """What identifies the machine code in use; empty without kernels."""
    library = _load() if _enabled else None
    return Path(library._name).stem if library else ""


def supports(*tensors: Tensor) -> bool:
    """Whether the kernels can compute with these tensors: single precision on a CPU, and at least one row of each."""
    return (
        all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.numel() for tensor in tensors)
        and not torch.compiler.is_compiling()
        and _enabled
        and _load() is not None
    )


def faster_than_torch() -> bool:
    """Whether torch's products in single precision leave half of the processor idle: MKL uses AVX-512 on Intel only."""
    return torch.backends.mkl.is_available() and "avx512f" in _features() and "GenuineIntel" not in _features()


def uses_bf16() -> bool:
    """Whether products are in bf16 now: where autocast says so, and the processor has them."""
    return (
        torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and "avx512_bf16" in _features()
        and _load(bf16=True) is not None
    )


def call(kernel: str, *arguments: Any, bf16: bool | None = None) -> None:
    """Calls a kernel: tensors go as pointers, structures and numbers as ctypes sees them (a plain int is a C int).

    ``bf16`` is for the way back, which has to multiply as the way forward did when `uses_bf16` held or did not.
    """
    library = _load(bf16=uses_bf16() if bf16 is None else bf16)
    getattr(library, kernel)(*(address(item) if isinstance(item, Tensor) else item for item in arguments))


def address(tensor: Tensor) -> ctypes.c_void_p:
    """`pointer`, as an argument of a kernel."""
    return ctypes.c_void_p(pointer(tensor))


def pointer(tensor: Tensor) -> int:
    """Where a contiguous tensor begins; the caller keeps the tensor alive during the call."""
    assert tensor.is_contiguous()
    assert tensor.dtype == torch.float32
    return tensor.data_ptr()


# --- building ---


@cache
def _features() -> frozenset[str]:
    """The maker of the processor and what it can do, in the words of Linux; empty elsewhere."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    told = [line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features", "vendor_id"))]
    return frozenset(word for words in told for word in words)


@cache
def _load(bf16: bool = False) -> ctypes.CDLL | None:
    """The compiled kernels, or None. ``bf16`` are those whose products are in bf16."""
    compiler = _compiler()
    if compiler is None:
        log.info("no C compiler found: the native kernels are off, updates on a CPU take longer")
        return None
    reason: Exception | str = ""
    for extras in EXTRAS:
        try:
            library = _open(compiler, [*FLAGS, *["-DBF16"] * bf16, *extras])
        except subprocess.CalledProcessError as error:
            reason = (error.stderr.decode(errors="replace").strip().splitlines() or [str(error)])[-1]
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            reason = error
        else:
            log.debug("native kernels: %s with %s", library._name, " ".join(extras))
            if "-fopenmp" not in extras and not bf16:
                log.info("%s makes native kernels of one thread; gcc makes faster ones", compiler[0])
            return library
    lost = "products stay in single precision" if bf16 else "updates on a CPU take longer"
    log.warning("the native kernels%s could not be built (%s): %s", " in bf16" * bf16, reason, lost)
    return None


def _compiler() -> list[str] | None:
    """The command of the machine's C compiler, or None."""
    try:
        commands = [shlex.split(command) for command in ([os.environ["CC"]] if "CC" in os.environ else COMPILERS)]
    except ValueError as error:
        log.warning("CC = %s is no command: %s", os.environ["CC"], error)
        return None
    return next((command for command in commands if command and shutil.which(command[0])), None)


def _open(compiler: Sequence[str], flags: Sequence[str]) -> ctypes.CDLL:
    """The library, built now unless that was done before. Many processes may do so at once.

    Raises OSError where it cannot be loaded (clang's OpenMP is not torch's); no later process tries again.
    """
    path = cache_folder() / f"kernels-{_fingerprint(compiler, flags)}.so"
    refused = path.with_suffix(".refused")
    if path.exists():
        with suppress(OSError):  # damaged
            return ctypes.CDLL(str(path))
    if refused.exists():
        raise OSError(f"this machine could not load what {compiler[0]} made; remove {refused} to try again")
    _build(compiler, flags, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        path.unlink(missing_ok=True)
        refused.touch()
        raise


def _build(compiler: Sequence[str], flags: Sequence[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        units = [str(FOLDER / unit) for unit in UNITS]
        objects = [unit.replace(".c", ".o") for unit in UNITS]
        # Linked without -ffast-math, which would change the floating-point mode of the whole process.
        for command in ([*flags, "-c", *units], ["-shared", *objects, "-o", "kernels.so", "-lm"]):
            subprocess.run([*compiler, *command], cwd=folder, check=True, capture_output=True, timeout=120)
        os.replace(Path(folder) / "kernels.so", path)


def cache_folder() -> Path:
    """For what compilers made: in the user's cache, or where that cannot be written, a folder of this process."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reverie"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # no home
        pass
    return Path(_own_folder().name)


@cache
def _own_folder() -> tempfile.TemporaryDirectory[str]:
    """Removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="reverie-")


@cache
def _fingerprint_of(compiler: tuple[str, ...]) -> str:
    """What the machine code depends on besides flags: sources, compiler, processor, and torch's OpenMP."""
    told = subprocess.run([*compiler, "--version"], check=True, capture_output=True, timeout=60).stdout
    described = told.decode(errors="replace")
    sources = [(FOLDER / name).read_text() for name in (*HEADERS, *UNITS)]
    machine = platform.machine(), platform.processor(), *sorted(_features())
    return "\0".join([*sources, described, torch.__version__, *machine])


def _fingerprint(compiler: Sequence[str], flags: Sequence[str]) -> str:
    parts = [_fingerprint_of(tuple(compiler)), *compiler, *flags]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
