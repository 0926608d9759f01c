"""Where the time of a run goes: plays and learns for some updates with a stopwatch around every part.

The parts are wrapped from outside while the profile is made, so that no other run pays for it.
"""

from __future__ import annotations

import functools
import json
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from reverie import agent
from reverie.agent import Agent
from reverie.behavior.actor_critic import ActorCritic
from reverie.behavior.flat import Flat
from reverie.behavior.hierarchy import Hierarchy
from reverie.behavior.intrinsic import Intrinsic
from reverie.config import Config
from reverie.env import VectorEnv
from reverie.learned_rates import LearnedRates
from reverie.optim import Optimizer
from reverie.replay import SequenceReplayBuffer
from reverie.run import plots
from reverie.run.logger import Logger
from reverie.run.train import DreamerV3Trainer
from reverie.world.model import MultimodalWorldModel

PARTS: dict[str, list[tuple[Any, str]]] = {
    "environment": [(VectorEnv, "send"), (VectorEnv, "receive")],
    "acting": [(Agent, "act")],
    "replay": [(SequenceReplayBuffer, name) for name in ("add", "sample", "write_latent")],
    "world model": [(MultimodalWorldModel, "loss")],
    "imagination": [(agent, "imagine")],
    "targets": [(ActorCritic, name) for name in ("compute_targets", "replay_value")],
    "views": [(Hierarchy, "views"), (Hierarchy, "goal_metrics"), (Flat, "views")],
    "motives": [(Agent, "rewards"), (Agent, "_learn_motives")],
    "policy and critic": [
        *[(agent, "improve"), (ActorCritic, "replay_value_loss")],
        *[(ActorCritic, "update_slow_critic"), (ActorCritic, "adapt_entropy")],
    ],
    "gradients": [(torch.Tensor, "backward")],
    "optimizer": [(Optimizer, "_descend"), (LearnedRates, "learn")],
    "logging": [(Logger, "write"), (Logger, "episode")],
}
"""Every part and the functions that it consists of. Time inside a nested part counts there alone."""


def motives(agent: Agent) -> Iterator[tuple[str, list[tuple[Any, str]]]]:
    """The same of every motive, by its name, and of every intrinsic reward, by its kind.

    What all intrinsic rewards see by is left to the motive that has them.
    """
    for name, motive in agent.motives.items():
        yield name, [(motive, "rewards"), (motive, "loss")]
        if isinstance(motive, Intrinsic):
            for stream, pay in motive.options.pay.items():
                yield pay.kind, [(motive.sources[stream], "reward"), (motive.sources[stream], "loss")]


class Stopwatch:
    """Adds up the time of named parts, each without the parts inside it."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._inner = [0.0]

    def now(self) -> float:
        """The time when all work given to the device so far is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts what happens inside under ``name``."""
        began = self.now()
        self._inner.append(0.0)
        try:
            yield
        finally:
            spent = self.now() - began
            self.seconds[name] += spent - self._inner.pop()
            self.calls[name] += 1
            self._inner[-1] += spent

    def around(self, name: str, function: Any) -> Any:
        """The function with its time counted under ``name``."""

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return function(*arguments, **named)

        return timed


@dataclass(frozen=True)
class Profile:
    """Milliseconds per update and calls per update of every part; ``rest`` is what no part explains."""

    milliseconds: dict[str, float]
    calls: dict[str, float]
    updates: int
    steps: int

    def lines(self) -> Iterator[str]:
        """A table with bars, largest part first."""
        total = sum(self.milliseconds.values())
        yield f"{'part':<18}{'ms / update':>12}{'share':>8}{'calls / update':>16}"
        for name, value in sorted(self.milliseconds.items(), key=lambda item: -item[1]):
            share = value / total
            yield f"{name:<18}{value:12.2f}{share:8.1%}{self.calls.get(name, 0):16.1f}  {'█' * round(40 * share)}"
        rate = 1000 * self.steps / (total * self.updates)
        yield f"{'together':<18}{total:12.2f}   over {self.updates} updates, {rate:.0f} steps/s"

    def write(self, path: Path) -> None:
        """Everything as JSON, and a chart of the same name beside it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(vars(self), indent=1) + "\n")
        self.plot(path.with_suffix(".png"))

    def plot(self, path: Path) -> None:
        """A bar for every part, largest first."""
        if (pyplot := plots.pyplot(path)) is None:
            return
        parts = sorted(self.milliseconds, key=self.milliseconds.__getitem__, reverse=True)
        times, total = [self.milliseconds[part] for part in parts], sum(self.milliseconds.values())
        figure, axes = pyplot.subplots(figsize=(7, 0.34 * len(parts) + 0.6))
        bars = axes.barh(parts, times)
        axes.bar_label(bars, [f"{time:.1f} ms  {time / total:.0%}" for time in times], padding=3, fontsize=8)
        axes.set(title=f"{total:.1f} ms per update", xlim=(0, 1.25 * max(times)), xticks=[])
        axes.invert_yaxis()
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        figure.tight_layout()
        figure.savefig(path, dpi=110)
        pyplot.close(figure)


def profile(config: Config, updates: int, warmup: int = 5) -> Profile:
    """Trains in a folder that is thrown away, ``warmup`` updates first, and measures ``updates`` more."""
    with tempfile.TemporaryDirectory() as folder:
        quiet: dict[str, Any] = {"name": "profile", "directory": folder, "checkpoint_dir": f"{folder}/checkpoints"}
        quiet["asynchronous"] = False  # the stopwatch is for one thread
        config = config.model_copy(update={"run": config.run.model_copy(update=quiet)})
        trainer = DreamerV3Trainer(config)
        try:
            while trainer.updates < warmup:
                trainer.advance()
            watch, before, steps = Stopwatch(trainer.agent.device), trainer.updates, trainer.step
            parts = [*PARTS.items(), *motives(trainer.agent)]
            with ExitStack() as wrapped:
                for name, functions in parts:
                    for owner, attribute in functions:
                        timed = watch.around(name, getattr(owner, attribute))
                        wrapped.enter_context(mock.patch.object(owner, attribute, timed))
                while trainer.updates < before + updates:
                    with watch.part("rest"):
                        trainer.advance()
        finally:
            trainer.close()
    done = trainer.updates - before
    return Profile(
        {name: 1000 * watch.seconds[name] / done for name in [*dict(parts), "rest"]},
        {name: watch.calls[name] / done for name in dict(parts)},
        done,
        trainer.step - steps,
    )
