"""Checkpoints: one file each, written whole or not at all, and verified before any parser sees a byte.

A checkpoint is an ordinary `torch.save` archive, so `torch.load(path)` opens it under its safe default. Its zip
comment holds a digest of everything before it, so a flipped bit or a torn write is found, which torch alone misses.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import shutil
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reverie import config as configuration
from reverie.config import Config
from reverie.errors import ConfigError, ReverieError, StoredDataError

FORMAT = 3
"""The layout of the saved state; raised when a reader of the old one could not understand the new one."""

MARK = b"reverie blake2b:"
TRAILER = len(MARK) + 64

SECTIONS = {
    *("config", "directory", "global_step", "updates", "seconds", "episodes_collected", "best_return"),
    *("metrics_history", "trained_to", "collector", "replay", "threads", "entropy", "sums", "metrics"),
}
"""What a run stores beside its agent."""

log = logging.getLogger(__name__)


class DivergenceError(ReverieError):
    """Parameters that are no longer finite."""

    exit_code = 5


class ResourceError(ReverieError):
    """The disk is full, read-only or gone, or a limit of the system was reached."""

    exit_code = 6


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Writes ``state`` to ``path``; after a crash at any moment the old file or the new one is there, whole.

    Raises DivergenceError for a tensor that is not finite and TypeError for anything but dict, list, tuple, str,
    int, float, bool, None, bytes and tensors (both name the key), and ResourceError when the disk refuses.
    """
    write(path, encode(state))


def load(path: Path) -> dict[str, Any]:
    """Reads what `save` wrote, all tensors on the CPU. Nothing in the file is executed.

    Raises StoredDataError when the file is missing, foreign, corrupt or of another format.
    """
    if not path.is_file():
        raise StoredDataError(f"{path}: no such checkpoint; name an existing .pt file of a run")
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise StoredDataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if bytes(data[-TRAILER : len(MARK) - TRAILER]) != MARK:
        raise StoredDataError(f"{path}: not a checkpoint of this program, or cut short; use another one")
    if bytes(data[-TRAILER:]) != _trailer(data[:-TRAILER]):
        raise StoredDataError(f"{path}: corrupt (its digest does not match); use another checkpoint of the run")
    return decode(data, path)


def load_first(path: Path, *spares: Path) -> tuple[Path, dict[str, Any]]:
    """The first sound checkpoint and its path, with a warning where that is a spare.

    Raises the StoredDataError of ``path`` where none is sound.
    """
    try:
        return path, load(path)
    except StoredDataError as failure:
        for spare in spares:
            with contextlib.suppress(StoredDataError):
                state = load(spare)
                log.warning("%s; going on from %s", failure, spare)
                return spare, state
        raise


def load_run(path: Path, *spares: Path) -> tuple[Config, dict[str, Any]]:
    """The configuration and the state of a run, from the first sound checkpoint; otherwise as `load_first`.

    Raises StoredDataError also where a section is missing or the configuration is not valid.
    """
    path, state = load_first(path, *spares)
    if missing := sorted(SECTIONS - state.keys()):
        raise StoredDataError(f"{path}: not the checkpoint of a run, it lacks {', '.join(missing)}; use another one")
    try:
        return configuration.build(state["config"]), state
    except ConfigError as error:
        raise StoredDataError(f"{path}: its configuration is of another version: {error}; use another one") from error


def encode(state: Mapping[str, Any]) -> memoryview:
    """The bytes of a checkpoint: a torch archive with the digest as its zip comment."""
    _check(dict(state), "")
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    buffer.getbuffer()[-2:] = struct.pack("<H", TRAILER)  # a zip ends with the length of its comment
    buffer.write(_trailer(buffer.getbuffer()))
    return buffer.getbuffer()


def decode(data: memoryview, path: Path) -> dict[str, Any]:
    """The state in bytes whose digest was verified; a digest proves nothing about who wrote them."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
        if any(e.compress_type for e in entries) or sum(e.file_size for e in entries) > len(data):
            raise ValueError("the archive claims more bytes than it has")
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        version = int(state["format"])
        if version == FORMAT:
            _check(state, "")
    except Exception as error:  # torch raises almost every type here, and its messages advise to load unsafely
        raise StoredDataError(f"{path}: not a checkpoint of this program; use another one") from error
    if version != FORMAT:
        advice = "upgrade reverie" if version > FORMAT else "use the version of reverie that wrote it"
        raise StoredDataError(f"{path}: has format {version}, this version reads {FORMAT}; {advice}")
    return state


def write(path: Path, data: bytes | memoryview, keep: Path | None = None) -> None:
    """Replaces ``path`` by a file with these bytes, durably; what stood there before is ``keep`` from now on.

    There is a file at ``path`` at every moment. Raises ResourceError when the system refuses; then ``path`` is as it
    was and nothing is left behind.
    """
    temporary, spare = path.with_name(path.name + ".tmp"), path.with_name(path.name + ".spare.tmp")
    size = len(data)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, size)  # a full disk is reported before a byte is written
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if keep is not None:
            _duplicate(path, spare)
            os.replace(spare, keep)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise _refusal(path, size, error) from error
    finally:
        _remove(temporary)
        _remove(spare)


class Checkpoints:
    """The checkpoints of one run: ``latest.pt``, the one before it, and the best.

    ``mirror`` is a folder that all runs share: there ``latest.pt`` and ``best_model.pt`` lead to the newest run's.
    Raises ResourceError at once when the run's folder cannot be written.
    """

    def __init__(self, folder: Path, mirror: Path | None = None):
        self.latest = folder / "latest.pt"
        self.previous = folder / "previous.pt"
        self.best = folder / "best_model.pt"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _refusal(folder, 0, error) from error
        self._mirror = None if mirror is None or mirror.resolve() == folder.resolve() else mirror
        for leftover in folder.glob("*.tmp"):
            _remove(leftover)
        probe = folder / "probe"
        write(probe, b"reverie")
        _remove(probe)

    def save(self, state: Mapping[str, Any], *, best: bool = False) -> bool:
        """Saves as the latest and, when ``best`` or the run's first, as the best. Raises what `save` does.

        Returns whether what was the latest is now the previous: a corrupt one is not kept.
        """
        with ThreadPoolExecutor(1) as pool:
            intact = pool.submit(_intact, self.latest)  # only a sound file may push out the one before it
            data = encode(state)
        sound = intact.result()
        write(self.latest, data, keep=self.previous if sound else None)
        self._show(self.latest)
        if best or not self.best.exists():
            write(self.best, data)
        self._show(self.best)
        return sound

    def _show(self, path: Path) -> None:
        """Makes the mirror lead to ``path``: by a link, or by a copy where links are not allowed."""
        if self._mirror is None:
            return
        target = self._mirror / path.name
        temporary = target.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            self._mirror.mkdir(parents=True, exist_ok=True)
            link = os.path.relpath(path.resolve(), self._mirror.resolve())
            if target.is_symlink() and os.readlink(target) == link:
                return
            try:
                temporary.symlink_to(link)
            except OSError:
                shutil.copyfile(path, temporary)
            os.replace(temporary, target)
        except OSError as error:
            log.warning("cannot make %s lead to %s (%s); the checkpoint itself is safe", target, path, error.strerror)


def _check(value: Any, key: str) -> None:
    """Refuses what a safe load would refuse, or what no training could go on from, and names its key."""
    kind = type(value)
    if isinstance(value, Tensor):
        if value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise TypeError(f"{key}: a tensor that claims more numbers than it stores; clone it")
        if value.is_floating_point() and value.numel() and not all(map(math.isfinite, value.detach().aminmax())):
            raise DivergenceError(f"{key}: not finite; lower the learning rates and go on from the last checkpoint")
    elif kind in (dict, OrderedDict):
        for name, item in value.items():
            if type(name) not in (str, int):
                raise TypeError(f"{key}: the key {name!r} is neither str nor int")
            _check(item, f"{key}.{name}" if key else str(name))
    elif kind in (list, tuple):
        for index, item in enumerate(value):
            _check(item, f"{key}[{index}]")
    elif kind not in (str, int, float, bool, bytes, type(None)):
        raise TypeError(f"{key}: {kind.__module__}.{kind.__qualname__} cannot be loaded safely; use plain types")


def _trailer(body: memoryview) -> bytes:
    return MARK + blake2b(body, digest_size=32).hexdigest().encode()


def _intact(path: Path) -> bool:
    try:
        data = memoryview(path.read_bytes())
    except OSError:
        return False
    return bytes(data[-TRAILER:]) == _trailer(data[:-TRAILER])


def _duplicate(path: Path, other: Path) -> None:
    """Gives a file a second name, or where the file system has no links, makes a durable copy of it."""
    _remove(other)
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)
        _sync(other)


def _sync(path: Path) -> None:
    """Makes what a file holds, or a rename in a folder, survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Removes a file that may not exist, on a disk that may refuse."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _refusal(path: Path, size: int, error: OSError) -> ResourceError:
    try:
        free = f"{shutil.disk_usage(path.parent).free / 1e6:.0f} MB free"
    except OSError:
        free = "its folder is gone"
    return ResourceError(f"cannot write {path}: {error.strerror} ({size / 1e6:.1f} MB needed, {free}); make room")
