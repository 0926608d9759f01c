"""Builds the C files with the machine's compiler, once, and keeps what it made in a folder that is the user's alone."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from reverie.native.bindings import bind

log = logging.getLogger(__name__)

FOLDER, CPUINFO = Path(__file__).parent, Path("/proc/cpuinfo")
UNITS = ["layers.c", "rssm.c", "two_hot.c", "optimizer.c"]
HEADERS = ["layout.h", "products.h", "shared.h"]
COMPILERS = ["cc", "gcc", "clang"]
"""Looked for in turn, unless the environment names one as CC."""
PATIENCE = 120.0
"""Seconds that a compiler may take."""
FLAGS = ["-O3", "-march=native", "-ffast-math", "-fno-finite-math-only", "-fPIC"]
WIDE = ["-mprefer-vector-width=512", "-mrecip=none"]
EXTRAS = [["-fopenmp", *WIDE], ["-fopenmp"], WIDE, []]
"""Tried in turn: not every compiler has them. OpenMP is not linked: torch's own pool is already in the process."""


@cache
def features() -> frozenset[str]:
    """The maker of the processor and what it can do, in the words of Linux; empty elsewhere."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    told = [line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features", "vendor_id"))]
    return frozenset(word for words in told for word in words)


@cache
def load(bf16: bool = False) -> ctypes.CDLL | None:
    """The compiled kernels, or None. ``bf16`` are those whose products are in bf16."""
    compiler = find_compiler()
    if compiler is None:
        log.info("no C compiler found: the native kernels are off, updates on a CPU take longer")
        return None
    reason: Exception | str = ""
    for extras in EXTRAS:
        try:
            library = _open(compiler, [*FLAGS, *["-DBF16"] * bf16, *extras])
        except subprocess.CalledProcessError as error:
            reason = (error.stderr.decode(errors="replace").strip().splitlines() or [str(error)])[-1]
        except subprocess.TimeoutExpired:
            reason = f"{compiler[0]} was not done after {PATIENCE:g} s; start again on an idle machine"
            break  # with fewer flags it would be no faster
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            reason = error
        else:
            log.debug("native kernels: %s with %s", library._name, " ".join(extras))
            if "-fopenmp" not in extras and not bf16:
                log.info("%s makes native kernels of one thread; gcc makes faster ones", compiler[0])
            return _bound(library)
    lost = "products stay in single precision" if bf16 else "updates on a CPU take longer"
    log.warning("the native kernels%s could not be built (%s): %s", " in bf16" * bf16, reason, lost)
    return None


def _bound(library: ctypes.CDLL) -> ctypes.CDLL | None:
    """None where the library is not the one that Python knows: other flags would not help."""
    try:
        return bind(library)
    except RuntimeError as error:
        log.warning("the native kernels are off: %s", error)
        return None


def find_compiler() -> list[str] | None:
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
            _run([*compiler, *command], folder)
        os.replace(Path(folder) / "kernels.so", path)


def _run(command: Sequence[str], folder: str) -> None:
    """Raises CalledProcessError, and TimeoutExpired; whatever the command started has ended then, too."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, start_new_session=True) as process:
        try:
            output, errors = process.communicate(timeout=PATIENCE)
        except BaseException:  # Ctrl-C too, which a session of its own does not hear
            with suppress(ProcessLookupError, AttributeError):  # gone already; no process groups on Windows
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output, errors)


# --- where it is kept ---


@cache
def cache_folder() -> Path:
    """For what compilers made, and this process will run: in the user's cache, or in a folder of this process.

    The latter where the former cannot be written, or where somebody else could have.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reverie"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        reason = _foreign(folder)
        if not reason and os.access(folder, os.W_OK):
            folder.chmod(0o700)
            return folder
        if reason:
            log.warning("%s %s: machine code in it is not used; remove it, or set XDG_CACHE_HOME", folder, reason)
    except (OSError, RuntimeError):  # no home
        pass
    return Path(_own_folder().name)


def _foreign(folder: Path) -> str:
    """Why others could have put machine code there; empty where nobody else could."""
    if not hasattr(os, "getuid"):  # Windows, where a user's folder is closed to others
        return ""
    me = os.getuid()
    if folder.lstat().st_uid != me or folder.stat().st_uid != me:
        return "belongs to another user"
    return "can be written by other users" if folder.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH) else ""


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
    machine = platform.machine(), platform.processor(), *sorted(features())
    return "\0".join([*sources, described, torch.__version__, *machine])


def _fingerprint(compiler: Sequence[str], flags: Sequence[str]) -> str:
    parts = [_fingerprint_of(tuple(compiler)), *compiler, *flags]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
