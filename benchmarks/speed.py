"""How long a full update takes (explain a batch, dream, improve): Reverie's settings and its peers.

    python benchmarks/speed.py                                    # everything, twenty minutes on two cores
    python benchmarks/speed.py size1m mid --contestants reverie   # some of it
    python benchmarks/speed.py --reference ../dreamerv3           # beside the reference in JAX as well

Peers come from the package index, each into an environment of its own in ``.peers``, made on first use. All train the
same network on batches of the same shape, with as many threads, held on fixed cores. Every measurement is a process of
its own, and the contestants take turns, so that a busy minute of the machine hits all of them. Medians over all updates
and peak memory go to ``benchmarks/results/speed.{json,png}``, by machine and workload, unless contestants are missing
that are in there. Runs on Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import textwrap
import venv
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from curves import machine

from reverie.config import dump, load
from reverie.run import plots
from reverie.types import ObservationSpec

SCRIPTS = Path(__file__).parent / "peers"
INSTALLED = Path(__file__).parents[1] / ".peers"
RESULTS = Path(__file__).parent / "results"

SETTINGS = {
    "reverie": (),
    "reverie-tensors": ("run.kernels=off",),
    "reverie-compiled": ("run.kernels=off", "agent.compile=on"),
    "reverie-bf16": ("agent.precision=bf16",),
    "reverie-checkpointed": ("world.gradient_checkpointing=true",),
    "hierarchy": ("hierarchy.enabled=true", "hierarchy.goal_warmup=0"),
}
"""Reverie's ways to compute, as changes of the configuration; everything is compared with the first."""
PEERS = {
    "reference": (),
    "reference-bf16": ("agent.precision=bf16",),
    "sheeprl": (),
    "sheeprl-bf16": ("agent.precision=bf16",),
    "torchrl": (),
}
"""Those of its peers. Each peer has a script and a file of requirements in ``peers``."""
RATES = {"reverie": "gigaflops", "reverie-bf16": "gigaflops in bf16"}
"""What the products of a setting are limited by."""


@dataclass(frozen=True)
class Workload:
    """A preset with changes, what is observed and done, and who takes part."""

    config: str
    changes: tuple[str, ...]
    observation: ObservationSpec
    actions: int
    contestants: tuple[str, ...] = ("reverie", "reverie-tensors")
    rounds: int = 3


PUBLISHED = ("world.size=1m", "replay.batch_size=16", "replay.length=64")
MID = (*PUBLISHED, "world.hidden=512", "world.units=512", "world.embed_dim=512", "world.classes=32", "world.layers=2")
TWO_EPOCHS = "replay.batch_size=64", "agent.horizon=16", "behavior.epochs=2"
NUMBERS, IMAGE = ObservationSpec((16,), "float32"), ObservationSpec((64, 64, 3), "uint8")
WAYS = "reverie", "reverie-tensors", "reverie-compiled", "reverie-bf16"
IMAGERS = "reverie", "reverie-checkpointed", "reverie-bf16", *(peer for peer in PEERS if peer != "torchrl")
WORKLOADS = {
    "size1m": Workload("dreamerv3", PUBLISHED, NUMBERS, 5, (*WAYS, *PEERS)),
    "mid": Workload("dreamerv3", MID, NUMBERS, 5, ("reverie", "reverie-tensors", "reverie-bf16", *PEERS)),
    # A minute per update of sheeprl. TorchRL's image encoder is another, smaller network.
    "image": Workload("dreamerv3", (*MID, "world.depth=32"), IMAGE, 5, IMAGERS, rounds=1),
    "cartpole": Workload("flat", (), ObservationSpec((4,), "float32"), 2),
    "levels": Workload("flat", TWO_EPOCHS, ObservationSpec((4,), "float32"), 2, ("reverie", "hierarchy")),
    "pixels": Workload("pixels", (), IMAGE, 7),
}


def describe(workload: Workload, threads: int, seconds: float, changes: tuple[str, ...] = ()) -> dict[str, Any]:
    """The task that every contestant's script takes; see ``peers/clock.py``."""
    config = load(workload.config, [*workload.changes, f"run.threads={threads}", "run.device=cpu", *changes])
    return {
        "config": json.loads(dump(config)),
        "sizes": asdict(config.world.sizes),
        "observation": asdict(workload.observation),
        "actions": workload.actions,
        "seconds": seconds,
    }


def run(program: list[str], task: dict[str, Any]) -> dict[str, Any]:
    """What one process answers to a task. Ends everything with its error where it fails."""
    threads = task["config"]["run"]["threads"]
    cores = sorted(os.sched_getaffinity(0))[:threads]
    # Unpinned, two threads may share one core for a whole run.
    settings = {"OMP_NUM_THREADS": str(threads), "GOMP_CPU_AFFINITY": " ".join(map(str, cores))}
    answer = subprocess.run([*program, json.dumps(task)], capture_output=True, text=True, env=os.environ | settings)
    if answer.returncode:
        sys.exit(f"{answer.stderr}\n{' '.join(program)} failed")
    return json.loads(answer.stdout.splitlines()[-1])


def program_of(contestant: str, reference: Path | None = None) -> list[str]:
    """The command that measures a contestant; a peer sees nothing but its own environment (``-E``)."""
    if contestant in SETTINGS:
        return [sys.executable, str(SCRIPTS / "reverie_update.py")]
    peer = contestant.partition("-")[0]
    checkout = [str(reference)] if peer == "reference" else []
    return [str(install(peer)), "-E", str(SCRIPTS / f"{peer}_update.py"), *checkout]


def install(peer: str) -> Path:
    """The Python of a peer's environment, made on first use and made anew when its requirements change."""
    folder, requirements = INSTALLED / peer, SCRIPTS / f"{peer}.txt"
    python, ready = folder / "bin" / "python", folder / "installed.txt"
    if not ready.exists() or ready.read_text() != requirements.read_text():
        print(f"installing {peer} in {folder}", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        command = [python, "-m", "pip", "install", "--quiet", "--requirement", requirements]
        if subprocess.run(command).returncode:
            sys.exit(f"{peer} could not be installed; choose others with --contestants {' '.join(SETTINGS)}")
        ready.write_text(requirements.read_text())
    return python


def compare(workload: Workload, contestants: list[str], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """What every contestant needs, from processes that take turns."""
    programs = {name: program_of(name, options.reference) for name in contestants}
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in programs}
    for _ in range(workload.rounds):
        for name, program in programs.items():
            task = describe(workload, options.threads, options.seconds, (SETTINGS | PEERS)[name])
            answers[name].append(run(program, task))
    return {name: summary(found) for name, found in answers.items()}


def summary(answers: list[dict[str, Any]]) -> dict[str, float]:
    """One contestant's processes: median and fastest update, peak memory, parameters, and how many updates."""
    times = [time for answer in answers for time in answer["milliseconds"]]
    return {
        "milliseconds": round(median(times), 2),
        "fastest": round(min(times), 2),
        "megabytes": round(max(answer["megabytes"] for answer in answers)),
        "parameters": answers[0]["parameters"],
        "updates": len(times),
    }


def limit(workload: Workload, threads: int) -> dict[str, float]:
    """How many products an update has, and how fast the machine was just now; see ``peers/limit.py``."""
    task = describe(workload, threads, 0.0, SETTINGS["reverie-tensors"])
    return {name: round(value, 1) for name, value in run([sys.executable, str(SCRIPTS / "limit.py")], task).items()}


def show(name: str, table: dict[str, dict[str, float]], products: dict[str, float]) -> None:
    """Prints a workload's rows, each with its multiple of the first one's time.

    Below is what Reverie's times are held to: the fastest peer in any precision, and what products alone would take.
    """
    first = next(row["milliseconds"] for row in table.values())
    print(f"\n{name:<18}{'ms':>10}{'fastest':>10}{'ratio':>8}{'MB':>8}{'parameters':>12}{'updates':>9}")
    for contestant, row in table.items():
        time = row["milliseconds"]
        print(f"  {contestant:<16}{time:>10.1f}{row['fastest']:>10.1f}{time / first:>8.2f}"
              f"{row['megabytes']:>8}{row['parameters']:>12,}{row['updates']:>9}", flush=True)  # fmt: skip
    peers = {peer: table[peer]["milliseconds"] for peer in PEERS if peer in table}
    for contestant, rate in RATES.items():
        if contestant in table:
            if peers:
                fastest = min(peers, key=lambda peer: peers[peer])
                share = table[contestant]["milliseconds"] / peers[fastest]
                print(f"  {contestant} takes {share:.0%} of the time of the fastest peer, {fastest}", flush=True)
            least = 1000 * products["gigaflop"] / products[rate]
            share = f"{least / table[contestant]['milliseconds']:.0%} of {contestant}"
            print(f"  {products['gigaflop']:,.1f} GFLOP in products take {least:.1f} ms at {products[rate]:.0f} a "
                  f"second, the most seen here: {share}", flush=True)  # fmt: skip


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    """A row for each machine, a panel for each workload."""
    if (pyplot := plots.pyplot(path)) is None:
        return
    size = len(results), max(map(len, results.values()))
    figure, axes = pyplot.subplots(*size, figsize=(3.4 * size[1], 2.6 * size[0]), squeeze=False)
    colors = dict(zip((*SETTINGS, *PEERS), pyplot.get_cmap("tab20").colors, strict=False))
    for row, (computer, workloads) in zip(axes, results.items(), strict=True):
        row[0].set_ylabel(textwrap.fill(computer.split(",")[0], 30), fontsize=8)
        for axis in row[len(workloads) :]:
            axis.axis("off")
        for axis, (name, result) in zip(row, workloads.items(), strict=False):
            draw_bars(axis, name, result["contestants"], colors)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_bars(axis: Any, name: str, table: dict[str, dict[str, float]], colors: dict[str, Any]) -> None:
    """One workload: a bar for each contestant, with its multiple of the first one's time."""
    times = [row["milliseconds"] for row in table.values()]
    bars = axis.barh(list(table), times, color=[colors[contestant] for contestant in table])
    axis.bar_label(bars, [f"{time:,.0f} ms  {time / times[0]:.1f}x" for time in times], padding=3, fontsize=8)
    axis.set(title=name, xlim=(0, 1.7 * max(times)), xticks=[])
    axis.invert_yaxis()
    axis.spines[["top", "right", "bottom"]].set_visible(False)


def options_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line, with the choices that all measurements of time share; warns where the machine is busy."""
    parser.add_argument("--threads", type=int, default=min(2, len(os.sched_getaffinity(0))))
    parser.add_argument("--seconds", type=float, default=4.0, help="of updates in each process, at least one update")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where to write (default: benchmarks/results)")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    options.load = round(os.getloadavg()[0], 2)
    if options.load > 0.5:
        print(f"this machine is busy (load {options.load}): the times will be too long", flush=True)
    return options


def main() -> None:
    """Measures what was asked for, and adds it to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", metavar="workload", help=f"of {', '.join(WORKLOADS)} (default: all)")
    everyone = [*SETTINGS, *PEERS]
    parser.add_argument("--contestants", nargs="+", metavar="name", choices=everyone,
                        help=f"of {', '.join(everyone)} (default: all that can be had)")  # fmt: skip
    parser.add_argument("--reference", type=Path, metavar="PATH",
                        help="a checkout of danijar/dreamerv3, tried at e3f0224")  # fmt: skip
    options = options_of(parser)
    if options.reference and not (options.reference / "dreamerv3" / "configs.yaml").exists():
        parser.error(f"{options.reference} is no checkout of danijar/dreamerv3: it has no dreamerv3/configs.yaml")
    without = [one for one in everyone if options.reference or not one.startswith("reference")]
    options.contestants = options.contestants or without
    if missing := set(options.contestants) - set(without):
        parser.error(f"{min(missing)} needs a checkout of danijar/dreamerv3: name it with --reference")
    if unknown := set(options.workloads) - WORKLOADS.keys():
        parser.error(f"unknown workload {min(unknown)}; choose from {', '.join(WORKLOADS)}")
    path = options.results / "speed.json"
    everything = json.loads(path.read_text()) if path.exists() else {}
    results = everything.setdefault(machine(), {})
    circumstances = {"threads": options.threads, "load before": options.load}
    for name in options.workloads or WORKLOADS:
        contestants = [one for one in WORKLOADS[name].contestants if one in options.contestants]
        if not contestants:
            continue
        table = compare(WORKLOADS[name], contestants, options)
        products = limit(WORKLOADS[name], options.threads)
        limits = [products, *(result["limit"] for result in results.values() if "limit" in result)]
        show(name, table, products | {rate: max(seen.get(rate, 0.0) for seen in limits) for rate in RATES.values()})
        if table.keys() >= results.get(name, {}).get("contestants", {}).keys():  # part of it replaces no whole
            results[name] = {**circumstances, "contestants": table, "limit": products}
            path.write_text(json.dumps(everything, indent=1) + "\n")
    plot(everything, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
