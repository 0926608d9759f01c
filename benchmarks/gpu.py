"""What Reverie does on a GPU, in six minutes: tests that need one, the time of updates, and two tasks.

    python benchmarks/gpu.py                                     # all of it, with the extras `dev` and `minigrid`
    python benchmarks/gpu.py updates --sizes 50m --ways off      # some of it
    python benchmarks/gpu.py --device cpu --results runs         # a rehearsal of every part at tiny sizes

``tests``: resume, half precision, acting beside learning and graphs, on the device. ``updates``: models that see images
of 64x64, as written, compiled and launched as graphs, in single precision and bf16, and what their products alone
would take. ``cartpole`` and ``minigrid``: learning, until it succeeds or the time is up. Each part has a share of the
time that is left; what does not fit is named. ``gpu.json`` and ``gpu.md`` in the folder of results are written anew
after every line, so that nothing is lost where the script is stopped. Without a GPU it exits with 8.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from curves import curve, machine
from speed import IMAGE, PUBLISHED, RESULTS, SCRIPTS, Workload, describe

ROOT = Path(__file__).parents[1]
TESTS = ("tests/gpu",)
"""Where the tests are; those of the device are chosen by their names."""
SHARES = {"tests": 90.0, "updates": 150.0, "cartpole": 55.0, "minigrid": 55.0}
"""Seconds of each part where nothing is left over, beside ten to start and to end."""
SIZES = ("1m", "12m", "25m", "50m", "100m", "200m")
PRECISIONS = ("fp32", "bf16")
WAYS = {"off": "as written", "graphs": "graphs", "on": "compiled"}
"""Values of `agent.compile`, in the order in which they are measured."""
TASKS = {
    "cartpole": ("flat", 475.0, ("run.evaluate_every=1000", "run.evaluate_episodes=20")),
    "minigrid": ("pixels", 0.9, ("run.evaluate_every=600", "run.evaluate_episodes=20")),
}
"""A preset, the mean return at which it counts as solved, and changes."""
TINY = ("replay.batch_size=2", "replay.length=4", "agent.horizon=2")
GRACE = 10.0
"""Seconds that a program has to end itself when its time is up, before it is ended."""
OUTCOME = re.compile(r"(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)")


@dataclass
class Report:
    """Everything found so far, on disk after every line."""

    path: Path
    facts: dict[str, Any]
    parts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, part: str, **row: Any) -> None:
        """A line of a part: printed, and kept."""
        self.parts.setdefault(part, []).append(row)
        print(f"  {line(row)}", flush=True)
        self.path.with_suffix(".json").write_text(json.dumps({**self.facts, **self.parts}, indent=1) + "\n")
        self.path.with_suffix(".md").write_text("\n".join(self.page()) + "\n")

    def page(self) -> Iterator[str]:
        """The same as Markdown, a table for each kind of line of each part."""
        yield from (f"- {name}: {value}" for name, value in self.facts.items())
        for part, rows in self.parts.items():
            yield from ("", f"## {part}")
            columns: list[str] = []
            for row in rows:
                if list(row) != columns:
                    columns = list(row)
                    yield from ("", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|")
                yield f"| {' | '.join(map(str, row.values()))} |"


def line(row: dict[str, Any]) -> str:
    """A row on the screen."""
    return ", ".join(f"{name} {value}" for name, value in row.items())


@dataclass
class Program:
    """A program that may run until a moment of the monotonic clock, and what it prints meanwhile."""

    command: list[str]
    deadline: float
    log: Path
    ended: str = ""
    """How it ended: empty where it did well."""

    def lines(self) -> Iterator[str]:
        """Every line as soon as it is there. When time is up it is asked to end, then made to, with its children."""
        left = self.deadline - time.monotonic()
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        with self.log.open("ab") as errors, subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=environment,
            start_new_session=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            ask = threading.Timer(max(0.0, left - GRACE), process.terminate)
            make = threading.Timer(max(1.0, left), os.killpg, (process.pid, signal.SIGKILL))
            try:
                ask.start(), make.start()
                yield from process.stdout
                process.wait()
            finally:
                late = time.monotonic() > self.deadline - GRACE
                ask.cancel(), make.cancel()
                with suppress(ProcessLookupError):  # there may be children where the program itself has ended
                    os.killpg(process.pid, signal.SIGKILL)
        if process.returncode:
            self.ended = "no time left" if late else f"failed with {process.returncode}, see {self.log.name}"


# --- the parts ---


def run_tests(report: Report, options: argparse.Namespace, deadline: float) -> None:
    """The tests of the device, each with its outcome."""
    chosen = "cuda" if options.device == "cuda" else "not cuda and not compiler"
    program = Program(
        [sys.executable, "-m", "pytest", "-v", "--numprocesses=0", "-p", "no:cacheprovider", "-m", chosen, *TESTS],
        deadline,
        report.path.with_suffix(".log"),
    )
    with program.log.open("a") as log:
        for text in program.lines():
            log.write(text)
            if found := OUTCOME.match(text):
                report.add("tests", test=found[1].split("::")[1], outcome=found[2].lower())
    if program.ended:
        report.add("tests", stopped=program.ended)


def run_updates(report: Report, options: argparse.Namespace, deadline: float) -> None:
    """Every size in every precision: first all as written, then each of the other ways in a process of its own."""
    written = [("off", size, precision) for size in options.sizes for precision in PRECISIONS]
    fused = product([way for way in WAYS if way != "off" and way in options.ways], options.sizes, PRECISIONS)
    groups = [written] * ("off" in options.ways) + [[one] for one in fused]
    gigaflop: dict[str, float] = {}
    for group in groups:
        tasks = [task_of(options, *one) for one in group]
        rows = [{"size": size, "way": WAYS[way], "precision": precision} for way, size, precision in group]
        if time.monotonic() > deadline - 2 * GRACE:
            reason = "no time left"
        else:
            command = [sys.executable, str(SCRIPTS / "gpu_update.py"), json.dumps({"tasks": tasks})]
            program = Program(command, deadline, report.path.with_suffix(".log"))
            answers = (json.loads(text) for text in program.lines() if text.startswith("{"))
            rates = next(answers, {})
            for answer in answers:
                row = rows.pop(0)
                gigaflop.setdefault(row["size"], answer.get("gigaflop"))
                report.add("updates", **row, **summary(answer, gigaflop[row["size"]], rates[row["precision"]]))
            reason = program.ended or "no answer"
        for row in rows:
            report.add("updates", **row, skipped=reason)


def task_of(options: argparse.Namespace, way: str, size: str, precision: str) -> dict[str, Any]:
    """What ``peers/gpu_update.py`` is asked."""
    changes = [f"world.size={size}", f"agent.compile={way}", f"agent.precision={precision}"]
    changes += [f"run.device={options.device}", *(TINY if options.device == "cpu" else ())]
    return describe(Workload("dreamerv3", PUBLISHED, IMAGE, 5), 1, options.seconds, tuple(changes))


def summary(answer: dict[str, Any], gigaflop: float | None, rate: float) -> dict[str, Any]:
    """A row of one measurement: ``products`` alone would take so many milliseconds at the device's rate."""
    if "failed" in answer:
        return {"skipped": answer["failed"]}
    times, products = answer["milliseconds"], gigaflop and 1000 * gigaflop / rate
    return {
        "milliseconds": round(median(times), 2),
        "fastest": round(min(times), 2),
        "updates": len(times),
        "megabytes": round(answer["megabytes"]),
        "parameters": answer["parameters"],
        "products": products and round(products, 3),
        "share": products and f"{products / median(times):.1%}",
        "teraflops": round(rate / 1000, 1),
    }


def run_learning(part: str, report: Report, options: argparse.Namespace, deadline: float) -> None:
    """A task until it is solved or the time is up: every evaluation, and how fast it went."""
    preset, goal, changes = TASKS[part]
    if part == "minigrid" and importlib.util.find_spec("minigrid") is None:
        report.add(part, skipped="minigrid is not installed; pip install 'reverie[minigrid]'")
        return
    with tempfile.TemporaryDirectory() as folder:
        settings = [*changes, f"run.target_return={goal}", "run.name=run", f"run.directory={folder}"]
        settings += [f"run.checkpoint_dir={folder}/newest", "run.video=false", "logger.tensorboard=false"]
        settings += options.changes
        command = [sys.executable, "-m", "reverie", "train", "--config", preset, "--device", options.device, *settings]
        program = Program(command, deadline, report.path.with_suffix(".log"))
        with program.log.open("a") as log:
            log.writelines(program.lines())
        metrics = Path(folder) / "run" / "metrics.jsonl"
        points = curve(metrics) if metrics.exists() else {"step": [], "seconds": [], "return": []}
        for step, seconds, mean in zip(points["step"], points["seconds"], points["return"], strict=True):
            report.add(part, step=step, seconds=round(seconds, 1), mean=round(mean, 2), goal=goal)
        if program.ended or not points["step"]:
            report.add(part, stopped=program.ended or "before the first evaluation")


PARTS = {
    "tests": run_tests,
    "updates": run_updates,
    **{part: lambda *rest, part=part: run_learning(part, *rest) for part in TASKS},
}


def main() -> None:
    """Runs what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--minutes", type=float, default=6.0, help="that the whole may take")
    parser.add_argument("--sizes", nargs="+", help=f"of world models (default: {' '.join(SIZES)})")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="values of agent.compile")
    parser.add_argument(
        "--seconds", type=float, default=1.5, help="of updates in each measurement, at least one update"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal at tiny sizes")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where to write (default: benchmarks/results)")
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"unknown part {min(unknown)}; choose from {', '.join(PARTS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: torch finds no CUDA device; --device cpu rehearses", file=sys.stderr)
        sys.exit(8)
    rehearsal = options.device == "cpu"
    options.sizes = options.sizes or (["tiny"] if rehearsal else SIZES)
    options.changes = [f"run.{name}" for name in ("steps=80", "evaluate_every=80", "evaluate_episodes=2")] * rehearsal
    options.results.mkdir(parents=True, exist_ok=True)
    name = "no GPU, a rehearsal" if rehearsal else torch.cuda.get_device_name()
    report = Report(options.results / ("rehearsal" if rehearsal else "gpu"), {"device": name, "machine": machine()})
    report.path.with_suffix(".log").unlink(missing_ok=True)
    end, waiting = time.monotonic() + 60 * options.minutes, list(options.parts or PARTS)
    while waiting:
        left = end - time.monotonic()
        share = left * SHARES[waiting[0]] / sum(SHARES[part] for part in waiting)
        part = waiting.pop(0)
        print(f"{part}, {share:.0f} seconds", flush=True)
        PARTS[part](report, options, time.monotonic() + share)


if __name__ == "__main__":
    main()
