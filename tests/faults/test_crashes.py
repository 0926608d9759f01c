"""Saving through kills, power cuts and full disks: the old checkpoint or the new one is there, never neither."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import resource
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from reverie.errors import StoredDataError
from reverie.run import checkpoint
from reverie.run.checkpoint import Checkpoints, ResourceError

fork = multiprocessing.get_context("fork")


def state(step: int, size: int = 50_000) -> dict:
    return {"global_step": step, "weights": torch.full((size,), float(step))}


def newest(kept: Checkpoints) -> dict:
    return checkpoint.load_first(kept.latest, kept.previous)[1]


@pytest.fixture(autouse=True)
def _with_threads():
    """Computes with several threads before anything forks, as many clusters set it: a child has one only."""
    torch.set_num_threads(2)
    state(0)


def begin(function, *arguments) -> BaseProcess:
    """A copy of this process that calls the function with one thread: torch would wait for those that it had before."""

    def run() -> None:
        torch.set_num_threads(1)
        function(*arguments)

    child = fork.Process(target=run, daemon=True)
    child.start()
    return child


def in_child(function, *arguments) -> int | None:
    child = begin(function, *arguments)
    child.join(30)
    return child.exitcode


def save_forever(folder: Path, first: int, acknowledge) -> None:
    kept = Checkpoints(folder)
    for step in range(first, 10**6):
        kept.save(state(step))
        acknowledge.value = step


def test_random_kills_lose_no_acknowledged_save(tmp_path):
    acknowledged = fork.Value("q", 0, lock=False)
    draw = random.Random(0)
    inside = 0
    for kills in range(200):
        if kills >= 25 and inside:  # a busy machine may need more than 25
            break
        first = acknowledged.value + 1
        before = acknowledged.value
        child = begin(save_forever, tmp_path, first, acknowledged)
        deadline = time.monotonic() + 20
        while acknowledged.value == before and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.02))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert acknowledged.value > before
        inside += any(tmp_path.glob("*.tmp"))
        found = newest(Checkpoints(tmp_path))
        assert found["global_step"] >= acknowledged.value
        assert torch.equal(found["weights"], state(found["global_step"])["weights"])
        acknowledged.value = found["global_step"]
    assert inside > 0, "no kill landed inside a write"


def save_and_die(folder: Path, call: str, count: int) -> None:
    kept, real, calls = Checkpoints(folder), getattr(os, call), iter(range(100))

    def deadly(*arguments):
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    setattr(os, call, deadly)
    kept.save(state(3))


@pytest.mark.parametrize(
    ("call", "count"), [(call, n) for call in ("write", "fsync", "link", "replace") for n in (0, 1)]
)
def test_a_kill_at_each_step_of_a_save_leaves_a_sound_checkpoint(tmp_path, call, count):
    kept = Checkpoints(tmp_path)
    kept.save(state(1))
    kept.save(state(2))
    died = in_child(save_and_die, tmp_path, call, count) == -signal.SIGKILL
    assert died or (call in ("write", "link") and count)  # the whole file fits in one write
    assert kept.latest.exists()
    found = newest(Checkpoints(tmp_path))["global_step"]
    assert found in ((2, 3) if died else (3,))
    assert not list(tmp_path.glob("*.tmp"))


class Disk:
    """Records what a save asks of the file system, and rebuilds what a power cut may leave of it."""

    def __init__(self, monkeypatch, folder: Path):
        self.folder, self.log, self.open = folder, [], {}
        for name in ("open", "write", "fsync", "link", "replace"):
            monkeypatch.setattr(os, name, getattr(self, f"_{name}")(getattr(os, name)))

    def _open(self, real):
        def call(path, flags, mode=0o777):
            descriptor = real(path, flags, mode)
            self.open[descriptor] = Path(path).name
            if flags & os.O_CREAT:
                self.log.append(("create", Path(path).name, b""))
            return descriptor

        return call

    def _write(self, real):
        def call(descriptor, data):
            self.log.append(("write", self.open[descriptor], bytes(data)))
            return real(descriptor, data)

        return call

    def _fsync(self, real):
        def call(descriptor):
            self.log.append(("fsync", self.open[descriptor], b""))
            return real(descriptor)

        return call

    def _link(self, real):
        def call(source, target):
            self.log.append(("link", Path(source).name, Path(target).name))
            return real(source, target)

        return call

    def _replace(self, real):
        def call(source, target):
            self.log.append(("replace", Path(source).name, Path(target).name))
            return real(source, target)

        return call

    def after(self, operations: int, keep_data: bool, renames: int) -> dict[str, bytes]:
        """The files after a cut: unsynced data kept or lost, and so many of the unsynced links and renames done."""
        data: dict[int, list] = {}  # inode -> [synced, written]
        names: dict[str, int] = {}
        durable: dict[str, int] = {}
        pending: list[tuple[str, str, bool]] = []
        for kind, name, extra in self.log[:operations]:
            if kind == "create":
                names[name] = len(data)
                data[names[name]] = [b"", b""]
            elif kind == "write":
                data[names[name]][1] += extra
            elif kind == "replace":
                names[extra] = names.pop(name)
                pending.append((name, extra, False))
            elif kind == "link":
                names[extra] = names[name]
                pending.append((name, extra, True))
            elif name == self.folder.name:
                durable, pending = dict(names), []
            else:
                data[names[name]][0] = data[names[name]][1]
                durable.setdefault(name, names[name])
        for source, target, stays in pending[:renames]:
            if source in durable:
                durable[target] = durable[source] if stays else durable.pop(source)
        return {name: data[inode][keep_data] for name, inode in durable.items()}


def test_a_power_cut_at_any_moment_leaves_the_last_acknowledged_save(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    kept = Checkpoints(folder)
    acknowledged = [(0, 0)]
    with monkeypatch.context() as patch:
        disk = Disk(patch, folder)
        for step in (1, 2, 3):
            kept.save(state(step, 100))
            acknowledged.append((len(disk.log), step))
    states = 0
    for cut in range(len(disk.log) + 1):
        last = max(step for length, step in acknowledged if length <= cut)
        for keep_data in (False, True):
            for renames in range(5):
                rebuilt = tmp_path / f"{cut}-{keep_data}-{renames}"
                rebuilt.mkdir()
                for name, data in disk.after(cut, keep_data, renames).items():
                    (rebuilt / name).write_bytes(data)
                kept = Checkpoints(rebuilt)
                found = newest(kept)["global_step"] if kept.latest.exists() or kept.previous.exists() else 0
                assert found >= last
                assert kept.latest.exists() or last == 0
                states += 1
    assert states > 200


def save_within(folder: Path, limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        Checkpoints(folder).save(state(2))
    except ResourceError as error:
        told = all(word in str(error) for word in ("latest.pt", "needed", "free"))
        os._exit(error.exit_code if told else 1)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.5, 0.9, 0.9999])
def test_a_file_size_limit_keeps_the_previous_checkpoint(tmp_path, share):
    kept = Checkpoints(tmp_path)
    kept.save(state(1))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert in_child(save_within, tmp_path, int(share * kept.latest.stat().st_size)) == 6
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("call", ["posix_fallocate", "write", "fsync", "replace", "open"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_refuses_keeps_the_previous_checkpoint_and_may_recover(tmp_path, monkeypatch, call, number):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    kept = Checkpoints(tmp_path)
    kept.save(state(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(ResourceError, match=os.strerror(number)):
            checkpoint.write(kept.latest, checkpoint.encode(state(2)))
    assert newest(kept)["global_step"] == 1
    assert not list(tmp_path.glob("*.tmp"))
    kept.save(state(3))
    assert newest(kept)["global_step"] == 3


def test_a_folder_that_disappears_is_named(tmp_path):
    kept = Checkpoints(tmp_path / "run")
    (tmp_path / "run").rmdir()
    with pytest.raises(ResourceError, match="its folder is gone"):
        kept.save(state(1))


def test_the_harness_notices_a_save_that_does_not_sync_its_file(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    kept = Checkpoints(folder)
    with monkeypatch.context() as patch:
        disk = Disk(patch, folder)
        sync = os.fsync
        patch.setattr(os, "fsync", lambda descriptor: sync(descriptor) if disk.open[descriptor] == "run" else None)
        kept.save(state(1, 100))
    (tmp_path / "latest.pt").write_bytes(disk.after(len(disk.log), False, 0)["latest.pt"])
    with pytest.raises(StoredDataError):
        newest(Checkpoints(tmp_path))
