"""How a run scales: with environments, with a large replay, with time.

    python benchmarks/scaling.py                                    # all parts, about fifteen minutes
    python benchmarks/scaling.py environments --names sleep --envs 1 2 --results runs/scaling
    python benchmarks/scaling.py replay --stored 1000000            # twelve gigabytes of disk
    python benchmarks/scaling.py memory

``environments``: steps per second of collecting alone and of training, and how many of the updates per second of a
learner without environments remain. ``replay``: how long sampling 16 x 64 images takes, and its share of an update.
``memory``: what a run holds, beside its mapped replay, while it goes on. Results are in ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from curves import machine
from gymnasium import spaces
from speed import RESULTS

from reverie import ENVIRONMENTS, DreamerV3Trainer, SequenceReplayBuffer
from reverie.agent import Agent
from reverie.config import load
from reverie.replay import ReplayOptions
from reverie.run import plots
from reverie.run.device import set_up
from reverie.types import ActionPart, ObservationSpec, Step

NAMES = {
    "cartpole": ["env.name=CartPole-v1"],
    "minigrid": ["env.name=minigrid/Empty-5x5"],
    "pong": ["env.name=atari/pong", "env.size=64"],
    "sleep": ["env.name=sleep"],
}
PLACES = {
    "inline": ["env.mode=inline"],
    "processes": ["env.mode=processes"],
    "async": ["env.mode=auto", "run.async=true"],
}
TURNS = 5
"""Of the learner alone and of the run."""
SMALL = [
    "run.device=cpu",
    "logger.tensorboard=false",
    "replay.batch_size=16",
    "replay.length=16",
    "run.train_ratio=128",
]


class Sleep(gymnasium.Env):
    """An environment whose steps take five milliseconds of nobody's processor, as a robot's do."""

    observation_space = spaces.Box(-1, 1, (8,), np.float32)
    action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.left = 200
        return self.observation_space.sample(), {}

    def step(self, action: int):
        time.sleep(0.005)
        self.left -= 1
        return self.observation_space.sample(), 0.0, False, self.left == 0, {}


# --- environments ---


@contextlib.contextmanager
def opened(changes: Sequence[str]) -> Iterator[DreamerV3Trainer]:
    """A run of the preset ``flat`` with changes, in a folder that is thrown away, with a replay to learn from."""
    with tempfile.TemporaryDirectory() as folder:
        place = [f"run.directory={folder}", f"run.checkpoint_dir={folder}/newest"]
        trainer = DreamerV3Trainer(load("flat", [*SMALL, *place, *changes]))
        try:
            replay, length = trainer.replay, 2000
            random = np.random.default_rng(0)
            episode = {
                key: random.integers(spec.classes or 256, size=(length, *spec.shape)).astype(spec.dtype)
                for key, spec in replay.observation.items()
            }
            episode["action"] = np.eye(trainer.agent.action_width)[np.zeros(length, int)]
            replay.add_episode(episode | {"reward": np.zeros(length)})
            yield trainer
        finally:
            trainer.close()


def per_second(action: Callable[[], Any], seconds: float) -> float:
    """How often the action fits into a second, measured over as many; one goes before to warm up."""
    action()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        action()
        count += 1
    return count / (time.perf_counter() - began)


def measure(name: str, place: str, envs: int, threads: int, seconds: float) -> dict[str, Any]:
    """Environment steps per second without and with learning, and updates per second with and without environments.

    Where the agent learns, medians of turns: the learner alone and the whole run follow each other closely, because
    machines have good and bad minutes.
    """
    changes = [*NAMES[name], *PLACES[place], f"env.envs={envs}", f"run.threads={threads}"]
    with opened(changes) as trainer:
        collecting = envs * per_second(trainer.collector.step, seconds)
        trainer.advance()
        turns = []
        for _ in range(TURNS):
            alone = per_second(trainer.learn, seconds)
            turns.append((alone, *train(trainer, seconds)))
        alone, training, learning, kept = np.median([(*turn, turn[2] / turn[0]) for turn in turns], 0)
        return {
            "mode": trainer.config.env.mode,
            "collecting": round(collecting, 1),
            "training": round(training, 1),
            "updates": round(learning, 2),
            "updates alone": round(alone, 2),
            "kept": round(kept, 3),
        }


def train(trainer: DreamerV3Trainer, seconds: float) -> tuple[float, float]:
    """Environment steps and updates per second of the run as it is."""
    updates, steps, began = trainer.updates, trainer.step, time.perf_counter()
    while time.perf_counter() - began < seconds or trainer.updates < updates + 4:
        trainer.advance()
    spent = time.perf_counter() - began
    return (trainer.step - steps) / spent, (trainer.updates - updates) / spent


def environments(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every environment in every place, in every number."""
    ENVIRONMENTS["sleep"] = Sleep
    print(f"{'':<10}{'envs':>5}  {'place':<18}{'collecting':>12}{'training':>10}{'updates':>9}{'of alone':>10}")
    rows = []
    for name, envs, place in itertools.product(options.names or NAMES, options.envs, PLACES):
        row = {
            "name": name,
            "envs": envs,
            "place": place,
            **measure(name, place, envs, options.threads, options.seconds),
        }
        rows.append(row)
        label = place if place == row["mode"] else f"{place} ({row['mode']})"
        print(f"{name:<10}{envs:5}  {label:<18}{row['collecting']:10.0f}/s{row['training']:8.0f}/s"
              f"{row['updates']:7.1f}/s{row['kept']:10.0%}", flush=True)  # fmt: skip
    plot(rows, options.results / "scaling.png")
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Steps per second over the number of environments: collecting solid, training dashed."""
    if (pyplot := plots.pyplot(path)) is None:
        return

    names = list(dict.fromkeys(row["name"] for row in rows))
    figure, axes = pyplot.subplots(1, len(names), figsize=(3.4 * len(names), 3.4), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for color, place in enumerate(PLACES):
            chosen = [row for row in rows if (row["name"], row["place"]) == (name, place)]
            envs = [row["envs"] for row in chosen]
            for kind, style in (("collecting", ".-"), ("training", ".--")):
                values = [row[kind] for row in chosen]
                axis.plot(envs, values, style, color=f"C{color}", label=f"{place}, {kind}")
        axis.set(title=name, xscale="log", yscale="log", xlabel="environments")
        axis.set_xticks(envs, map(str, envs))
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("steps per second")
    axes[0][-1].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


# --- replay ---

FRAME = ObservationSpec((64, 64, 3), "uint8")
ACTIONS = 6


def store(replay: SequenceReplayBuffer, rows: int, streams: int) -> float:
    """Fills the replay with noise; returns rows per second."""
    random, began = np.random.default_rng(0), time.perf_counter()
    frames = random.integers(256, size=(64, streams, *FRAME.shape), dtype=np.uint8)
    action, never = np.eye(ACTIONS, dtype=np.float32)[np.zeros(streams, int)], np.zeros(streams, bool)
    latent = {name: np.zeros((streams, *shape), dtype) for name, (shape, dtype) in replay.latent.items()}
    for index in range(rows // streams):
        replay.add(
            Step({"image": frames[index % 64]}, np.zeros(streams, np.float32), never, never, never), action, latent
        )
    return rows / (time.perf_counter() - began)


def replaying(options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of sampling 16 x 64 images at once, and while learning: there the copying happens beside it."""
    streams, spaces = 16, ({"image": FRAME}, (ActionPart("action", ACTIONS, True),))
    config = load("pixels")
    set_up(options.threads, "auto")
    options = config.agent, config.world, config.behavior, config.hierarchy
    agent = Agent(*options, spaces, torch.device("cpu"), intrinsic=config.intrinsic)
    chosen = ReplayOptions(batch_size=16, length=64, capacity=max(options.stored, 20_000), online=False)
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        needed, free = 13_000 * options.stored, shutil.disk_usage(folder).free
        if needed > 0.9 * free:
            raise SystemExit(f"{options.stored} steps take {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free there")
        replay = SequenceReplayBuffer(chosen, Path(folder), *spaces, agent.world.stored, streams, seed=0)
        writing, faults = store(replay, options.stored, streams), resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        sampling = 1000 / per_second(replay.sample, 2 * options.seconds)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults
        spent = {"sample": 0.0, "learn": 0.0, "write": 0.0}
        for index in range(1 + options.updates):
            if index == 1:  # the first warms up
                spent = dict.fromkeys(spent, 0.0)
            began = time.perf_counter()
            batch = replay.sample()
            sampled = time.perf_counter()
            _, latent = agent.learn(batch)
            learned = time.perf_counter()
            replay.write_latent(batch.slot, latent)
            moments = (began, sampled, learned, time.perf_counter())
            for part, duration in zip(spent, np.diff(moments), strict=True):
                spent[part] += float(duration)
        replay.close()
    parts = {name: round(1000 * value / options.updates, 2) for name, value in spent.items()}
    share = (parts["sample"] + parts["write"]) / sum(parts.values())
    print(f"replay of {options.stored} steps: {writing:.0f} steps/s written, {sampling:.1f} ms to sample a batch "
          f"({faults} reads from disk); in an update of {sum(parts.values()):.0f} ms, {parts['sample']:.2f} ms go to "
          f"sampling and {parts['write']:.2f} ms to rewriting latents: {share:.1%}", flush=True)  # fmt: skip
    return {"stored": options.stored, "written per second": round(writing), "sampling": round(sampling, 2),
            "disk reads": faults, "share": round(share, 4), **parts}  # fmt: skip


# --- memory ---


def resident() -> float:
    """Megabytes of memory that this process has for itself: mapped files, such as the replay's, do not count."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon"))


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Memory after every tenth of a run that fills its replay again and again."""
    changes = ["env.envs=8", "replay.capacity=2000", "replay.chunk=64"]
    changes += ["replay.batch_size=4", "replay.length=8", "run.train_ratio=16"]
    held = []
    with opened([*changes, f"run.threads={options.threads}"]) as trainer:
        for tenth in range(1, 11):
            while trainer.step < options.steps * tenth // 10:
                trainer.advance()
            held.append(round(resident(), 1))
    growth = (held[-1] - held[2]) / (0.7 * options.steps) * 100_000
    print(f"memory over {options.steps} steps and {trainer.updates} updates: {held} MB, "
          f"{growth:+.1f} MB per 100,000 steps after the first three tenths", flush=True)  # fmt: skip
    return {"steps": options.steps, "updates": trainer.updates, "megabytes": held}


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "memory": memory,
    "environments": environments,
    "replay": replaying,
}


def main() -> None:
    """Measures what was asked for; each part replaces what the results had of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--names", nargs="+", choices=NAMES, help="environments (default: all)")
    parser.add_argument("--envs", nargs="+", type=int, default=[1, 2, 4, 8, 16], help="how many of them")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--seconds", type=float, default=0.8, help="of each measurement")
    parser.add_argument("--stored", type=int, default=100_000, help="steps in the replay")
    parser.add_argument("--directory", type=Path, help="where the replay is stored (default: for temporary files)")
    parser.add_argument("--updates", type=int, default=5, help="beside which sampling is measured")
    parser.add_argument("--steps", type=int, default=10_000, help="of the run whose memory is watched")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args()
    if strangers := set(options.parts) - PARTS.keys():
        parser.error(f"unknown part {', '.join(sorted(strangers))}; the parts are {', '.join(PARTS)}")
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / "scaling.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for part in options.parts or PARTS:
        results[part] = {"machine": machine(), "threads": options.threads, "measured": PARTS[part](options)}
        path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
