"""Rows, console lines and trackers; and that a tracker which raises, hangs or is missing cannot hurt."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import sys
import threading
import types

import pytest
import torch
from rich.console import Console

from reverie.config import LoggerOptions
from reverie.run import logger as module
from reverie.run.logger import Background, Logger, console
from reverie.run.progress import Progress

QUIET = LoggerOptions(tensorboard=False)


@pytest.fixture(autouse=True)
def own_console():
    """Leaves the package's logger as it was."""
    before = module.log.handlers[:], module.log.propagate, module.log.level
    module.log.setLevel("INFO")
    yield
    module.log.handlers[:], module.log.propagate = before[:2]
    module.log.setLevel(before[2])


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_tensors_become_numbers_in_a_row_per_step(tmp_path):
    log = Logger(QUIET, tmp_path, {})
    log.write(1000, {"world/recon_loss": torch.tensor(0.5), "meta/lr": 3e-5, "bad": torch.tensor(float("nan"))})
    log.episode(1200, 150.5, 200)
    log.close()
    assert rows(tmp_path) == [
        {"step": 1000, "world/recon_loss": 0.5, "meta/lr": 3e-5, "bad": None},
        {"step": 1200, "episode/return": 150.5, "episode/length": 200.0},
    ]


def test_the_console_lines_read_as_promised(tmp_path, capsys):
    console("INFO")
    log = Logger(QUIET, tmp_path, {})
    log.write(1000, {"world/recon_loss": torch.tensor(0.12341), "policy/policy_loss": 0.5678, "detail": 1.0})
    log.write(2000, {"evaluation/return": 475.04})
    log.episode(2000, 150.5, 200)
    console("DEBUG")
    log.write(3000, {"world/recon_loss": 3e-5, "detail": 1.0})
    console("WARNING")
    log.episode(4000, 1.0, 1)
    log.close()
    assert capsys.readouterr().out.splitlines() == [
        "INFO - Step 1000: {'world/recon_loss': 0.1234, 'policy/policy_loss': 0.5678}",
        "INFO - Episode return: 150.5, length: 200",
        "INFO - Step 3000: {'world/recon_loss': 3e-05, 'detail': 1.0}",
    ]


def test_resuming_cuts_rows_after_the_step_and_a_torn_last_line(tmp_path):
    log = Logger(QUIET, tmp_path, {})
    for step in (1, 2, 3):
        log.write(step, {"x": float(step)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "x"')
    log = Logger(QUIET, tmp_path, {}, resume=2)
    log.write(3, {"x": 30.0})
    log.close()
    assert [(row["step"], row["x"]) for row in rows(tmp_path)] == [(1, 1), (2, 2), (3, 30)]


def test_rows_of_one_step_are_cut_at_the_mark(tmp_path):
    log = Logger(QUIET, tmp_path, {})
    log.write(1, {"x": 1.0})
    log.write(2, {"x": 2.0})
    mark = log.mark()
    log.episode(2, 5.0, 7)  # lost with the process
    log.write(3, {"x": 3.0})
    log.close()
    log = Logger(QUIET, tmp_path, {}, 2, mark)
    assert log.mark() == mark
    log.episode(2, 5.0, 7)
    log.close()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 2]


@pytest.mark.parametrize("line", [b"", b"dust", b"\xff\xff", b"[1]", b'{"step": "x"}', b'{"x": 1}', b"[" * 100_000])
def test_a_bad_line_costs_no_other_line_and_is_counted(tmp_path, caplog, line):
    log = Logger(QUIET, tmp_path, {})
    for step in (1, 2, 3):
        log.write(step, {"x": float(step)})
    mark = log.mark()
    log.write(4, {"x": 4.0})
    log.close()
    path = tmp_path / "metrics.jsonl"
    first, _, *others = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + line + b"\n" + b"".join(others))
    log = Logger(QUIET, tmp_path, {}, 3, mark)
    log.write(4, {"x": 40.0})
    log.close()
    assert [(row["step"], row["x"]) for row in rows(tmp_path)] == [(1, 1), (3, 3), (4, 40)]
    assert "not what it was at the checkpoint: 3 of its 4 rows can be read and are kept" in caplog.text


def test_a_number_that_changed_is_noticed(tmp_path, caplog):
    log = Logger(QUIET, tmp_path, {})
    log.write(1, {"x": 1.5})
    mark = log.mark()
    log.close()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b"1.5", b"9.5"))
    Logger(QUIET, tmp_path, {}, 1, mark).close()
    assert "not what it was at the checkpoint" in caplog.text


def test_a_line_that_was_torn_after_the_resumed_step_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}')
    Logger(QUIET, tmp_path, {}, resume=5).close()
    assert rows(tmp_path) == [{"step": 1}]


def test_a_full_disk_costs_rows_and_one_warning_but_no_half_row(tmp_path, monkeypatch, caplog):
    log = Logger(QUIET, tmp_path, {})
    log.write(1, {"x": 1.0})
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:5]))
        log.write(2, {"x": 2.0})
        log.write(3, {"x": 3.0})
    log.write(4, {"x": 4.0})
    log.close()
    assert [row["step"] for row in rows(tmp_path)] == [1, 4]
    assert caplog.text.count("training goes on") == 1


def test_a_folder_that_cannot_be_written_does_not_stop_training(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    log = Logger(QUIET, tmp_path / "file", {})
    log.write(1, {"x": 1.0})
    log.close()
    assert caplog.text.count("cannot write") == 1


class Fake:
    """A tracker that remembers, or misbehaves."""

    def __init__(self, trouble=None):
        self.trouble = trouble or (lambda: None)
        self.calls = []
        self.closed = False

    def scalars(self, step, metrics):
        self.trouble()
        self.calls.append((step, metrics))

    def media(self, step, name, path):
        self.calls.append((step, name, path))

    def close(self):
        self.closed = True


def raises(kind):
    def trouble():
        raise kind("broken\nin two lines")

    return trouble


def with_tracker(monkeypatch, folder, connect) -> Logger:
    monkeypatch.setattr(module, "TensorBoard", lambda *arguments: connect())
    return Logger(LoggerOptions(tensorboard=True), folder, {})


def test_a_tracker_gets_every_row_and_file_in_order(tmp_path, monkeypatch):
    fake = Fake()
    log = with_tracker(monkeypatch, tmp_path, lambda: fake)
    log.write(1, {"x": torch.tensor(1.0)})
    log.media(2, "dream", tmp_path / "a.mp4")
    log.close()
    assert fake.calls == [(1, {"x": 1.0}), (2, "dream", tmp_path / "a.mp4")]
    assert fake.closed


@pytest.mark.parametrize("kind", [ValueError, OSError, MemoryError, SystemExit, KeyboardInterrupt])
def test_a_tracker_that_keeps_failing_is_switched_off_with_one_warning(tmp_path, monkeypatch, caplog, kind):
    attempts = []
    fake = Fake(lambda: (attempts.append(1), raises(kind)()))
    log = with_tracker(monkeypatch, tmp_path, lambda: fake)
    for step in range(10):
        log.write(step, {"x": 1.0})
    log.close()
    assert len(attempts) == module.PATIENCE
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [
        f"tensorboard is switched off ({kind.__name__}: broken); training goes on"
    ]
    assert len(rows(tmp_path)) == 10


def test_a_tracker_that_fails_now_and_then_stays(tmp_path, monkeypatch):
    turn = iter(range(100))
    fake = Fake(lambda: raises(OSError)() if next(turn) % 3 else None)
    log = with_tracker(monkeypatch, tmp_path, lambda: fake)
    for step in range(30):
        log.write(step, {"x": 1.0})
    log.close()
    assert len(fake.calls) == 10


def test_a_missing_package_costs_one_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = Logger(LoggerOptions(wandb=True), tmp_path, {})
    log.write(1, {"x": 1.0})
    log.close()
    warnings = sorted(r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING)
    assert [text.split(" (")[0] for text in warnings] == ["tensorboard is switched off", "wandb is switched off"]
    assert rows(tmp_path) == [{"step": 1, "x": 1.0}]


@pytest.mark.parametrize("where", ["connect", "scalars", "close"])
def test_a_tracker_that_hangs_is_left_behind(tmp_path, monkeypatch, caplog, where):
    release = threading.Event()
    monkeypatch.setattr(module, "EXIT_DELAY", 0.1)
    fake = Fake(release.wait if where == "scalars" else None)
    if where == "close":
        fake.close = release.wait  # type: ignore[method-assign]
    log = with_tracker(monkeypatch, tmp_path, lambda: (release.wait() if where == "connect" else None, fake)[1])
    for step in range(3000):
        log._store(step, {"x": 1.0})
    log.close()
    release.set()
    assert "left behind" in caplog.text
    assert len(rows(tmp_path)) == 3000


def test_a_slow_tracker_loses_the_oldest_rows_and_they_are_counted():
    release, seen = threading.Event(), []
    feed = Background("slow", lambda: (release.wait(), Fake())[1], capacity=10)
    for step in range(25):
        feed.put(lambda tracker, step=step: seen.append(step))
    release.set()
    feed._thread.join(0.2)
    feed.finish()
    feed.join(5)
    assert seen == list(range(15, 25))
    assert feed.dropped == 15


def test_tensorboard_files_hold_the_metrics(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = Logger(LoggerOptions(), tmp_path, {})
    log.write(7, {"world/kl_loss": 1.5})
    module.EXIT_DELAY, before = 60.0, module.EXIT_DELAY
    log.close()
    module.EXIT_DELAY = before
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("world/kl_loss")] == [(7, 1.5)]


def fake_wandb(known: bool) -> types.ModuleType:
    wandb = types.ModuleType("wandb")
    wandb.inits, wandb.logs = [], []  # type: ignore[attr-defined]
    wandb.Settings = dict  # type: ignore[attr-defined]
    wandb.login = lambda prompt: known  # type: ignore[attr-defined]
    wandb.Video = lambda path: ("video", path)  # type: ignore[attr-defined]
    wandb.Image = lambda path: ("image", path)  # type: ignore[attr-defined]
    run = types.SimpleNamespace(dir="wandb/run/files", finish=lambda: wandb.logs.append("finish"))  # type: ignore
    run.log = wandb.logs.append  # type: ignore[attr-defined]
    run.define_metric = lambda name, step_metric: wandb.logs.append((name, step_metric))  # type: ignore[attr-defined]
    wandb.init = lambda **options: (wandb.inits.append(options), run)[1]  # type: ignore[attr-defined]
    return wandb


@pytest.mark.parametrize(
    ("reachable", "known", "chosen", "mode"),
    [
        (True, True, None, "online"),
        (True, False, None, "offline"),
        (False, True, None, "offline"),
        (False, True, "disabled", "disabled"),
    ],
)
def test_the_mode_of_wandb_is_decided_before_it_starts(tmp_path, monkeypatch, reachable, known, chosen, mode):
    def connect(address, timeout):
        assert address == ("wandb.example", 443)
        if not reachable:
            raise OSError("unreachable")
        return io.BytesIO()

    wandb = fake_wandb(known)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(module.socket, "create_connection", connect)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if chosen:
        monkeypatch.setenv("WANDB_MODE", chosen)
    log = Logger(LoggerOptions(tensorboard=False, wandb=True), tmp_path / "my-run", {"seed": 3})
    for total in (5.0, 6.0):  # two environments at once
        log.episode(1, total, 7)
    log.media(2, "dream", tmp_path / "a.mp4")
    log.media(3, "dream", tmp_path / "a.webp")
    log.close()
    (options,) = wandb.inits
    assert (options["mode"], options["id"], options["config"]) == (mode, "my-run", {"seed": 3})
    assert wandb.logs == [
        ("*", "step"),
        {"step": 1, "episode/return": 5.0, "episode/length": 7.0},
        {"step": 1, "episode/return": 6.0, "episode/length": 7.0},
        {"step": 2, "dream": ("video", str(tmp_path / "a.mp4"))},
        {"step": 3, "dream": ("image", str(tmp_path / "a.webp"))},
        "finish",
    ]


def test_wandb_itself_writes_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(module, "EXIT_DELAY", 60.0)
    log = Logger(LoggerOptions(tensorboard=False, wandb=True), tmp_path, {"seed": 3})
    log.write(1, {"x": 1.0})
    log.close()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def speak(reader: int, writer: int) -> None:
    os.close(reader)
    os.dup2(writer, 1)
    os.close(writer)
    sys.stdout = open(1, "w")  # noqa: SIM115
    console("INFO")
    for line in range(20_000):
        module.log.info("line %d", line)
    sys.stdout.close()


def test_a_closed_pipe_does_not_stop_the_program():
    reader, writer = os.pipe()
    child = multiprocessing.get_context("fork").Process(target=speak, args=(reader, writer), daemon=True)
    child.start()
    os.close(writer)
    with open(reader) as pipe:
        assert pipe.readline() == "INFO - line 0\n"
    child.join(30)
    assert child.exitcode == 0


@pytest.mark.parametrize("stdout", [None, "closed"])
def test_without_a_stdout_the_console_is_silent(monkeypatch, stdout):
    file = io.StringIO()
    file.close()
    console("INFO")
    monkeypatch.setattr(sys, "stdout", file if stdout else None)
    module.log.info("hello")


def test_progress_is_shown_on_a_terminal_only():
    for terminal in (True, False):
        screen = Console(file=io.StringIO(), force_terminal=terminal, width=120)
        with Progress(1000, 500, screen) as progress:
            progress.episode(100.0)
            progress.episode(200.0)
            progress._last = (progress._last[0] - 2, 500, 0)
            progress.update(700, 50)
        text = screen.file.getvalue()  # type: ignore[attr-defined]
        assert ("700/1000" in text and "steps/s" in text and "return 150.0" in text) == terminal
        assert terminal or text == ""


def test_a_terminal_that_goes_away_does_not_stop_training():
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(5, "Input/output error")

    with Progress(1000, 0, Console(file=Gone(), force_terminal=True)) as progress:
        progress.update(10, 1)
