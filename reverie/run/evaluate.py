"""Evaluation: whole episodes with the current agent, in environments and with random numbers of their own.

It leaves no trace in training: a run that evaluates more often learns the same, bit for bit.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from reverie import config as configuration
from reverie.agent import Agent
from reverie.behavior.hierarchy import GOAL_THRESHOLD
from reverie.compatibility import explained
from reverie.config import Config
from reverie.env import EnvOptions, make_vector, spaces_of, with_mode
from reverie.run import checkpoint
from reverie.run.collect import Episode, Player, Scores
from reverie.run.device import choose_device, set_up
from reverie.types import Carry, Latent, Step

MOST_ENVS = 100
"""Fast environments that are played side by side at most; of slow ones, as many as in training."""

RECORDED = 100
"""Steps of an episode that a prediction video shows: their frames are dreamed all at once."""

HELD_OUT = 2**32
"""Added to the seeds that a user gives: no run has such a seed, so its episodes are not those of any training."""

LONG = 10_000
"""Steps after which an open episode of an evaluation is pointed out."""

log = logging.getLogger(__name__)


class LengthLimit:
    """Stops episodes after ``steps`` (0: never), since some environments end none, and says so in time.

    ``options`` are those of an environment that is so limited.
    """

    def __init__(self, options: EnvOptions, steps: int):
        shortens = steps and not 0 < options.time_limit <= steps
        self.options = options.model_copy(update={"time_limit": steps}) if shortens else options
        self.steps, self.silent = steps if shortens else sys.maxsize, True

    def watch(self, length: Int[np.ndarray, "E"]) -> None:
        """Warns, once, of an episode that lasts long or was stopped; call it with their lengths after each step."""
        if self.silent and bool(((length > LONG) | (length == self.steps)).any()):
            end = "never stopped" if self.steps == sys.maxsize else f"stopped after {self.steps} (run.evaluate_limit)"
            log.warning("%s: an episode has lasted %d steps and is %s; where episodes do not end by "
                        "themselves, set env.time_limit", self.options.name, length.max(), end)  # fmt: skip
            self.silent = False


@dataclass
class Recording:
    """The beginning of one episode: what was seen, and the action that led there."""

    obs: list[dict[str, np.ndarray]] = field(default_factory=list)
    previous_action: list[np.ndarray] = field(default_factory=list)
    reward: list[float] = field(default_factory=list)
    """What arrived with each observation."""
    latent: list[Latent] = field(default_factory=list)
    """The state [1] that each observation led to."""
    target: list[Tensor] = field(default_factory=list)
    """Of the goal that was in force after each observation."""

    def __len__(self) -> int:
        return len(self.obs)

    def add(self, step: Step, previous_action: Float[np.ndarray, "E A"], carry: Carry) -> None:
        """Keeps what the first environment showed, and what the agent made of it."""
        self.obs.append({key: value[0].copy() for key, value in step.obs.items()})
        self.previous_action.append(previous_action[0])
        self.reward.append(float(step.reward[0]))
        self.latent.append(Latent(*(field[:1] for field in carry.latent.fields)))
        self.target.append(carry.goal.target[0])


@dataclass(frozen=True)
class Evaluation:
    """Finished episodes, and a recording of the first steps of one of them."""

    episodes: list[Episode]
    recording: Recording
    fits: Float[np.ndarray, "goals 3"]
    """How well each goal fits where it led, that of another environment there, and where it was chosen."""

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean([episode.total for episode in self.episodes]))

    @property
    def deviation(self) -> float:
        """Standard deviation of returns over episodes."""
        return float(np.std([episode.total for episode in self.episodes]))

    @property
    def length(self) -> float:
        """Mean length in steps."""
        return float(np.mean([episode.length for episode in self.episodes]))

    @property
    def info(self) -> dict[str, float]:
        """Means of what the environment told (`EnvOptions.info_metrics`), over the episodes of which it did."""
        names = {name: None for episode in self.episodes for name in episode.info}
        told = {name: [episode.info[name] for episode in self.episodes if name in episode.info] for name in names}
        return {f"evaluation/{name}": float(np.mean(numbers)) for name, numbers in told.items()}

    @property
    def goals(self) -> dict[str, float]:
        """How often goals were reached, how often those of other environments were, and how often at the start.

        What is not known is left out.
        """
        names = "goal_reach", "goal_reach_shuffled", "goal_reach_at_start"
        pairs = zip(names, self.fits.T, strict=True)
        shares = {name: fits >= GOAL_THRESHOLD for name, fits in pairs if not np.isnan(fits).any()}
        return {f"evaluation/{name}": float(reached.mean()) for name, reached in shares.items() if len(reached)}

    def __str__(self) -> str:
        return f"mean return {self.mean:.1f} ± {self.deviation:.1f} over {len(self.episodes)} episodes"


def evaluate(
    agent: Agent,
    options: EnvOptions,
    episodes: int,
    seed: int,
    record: int = 0,
    unwanted: Callable[[], bool] = lambda: False,
    limit: int = 0,
    deterministic: bool = False,
) -> Evaluation:
    """Plays ``episodes`` whole episodes; every environment plays its share, so that short ones are not favoured.

    ``record`` is how many steps of the first environment's first episode to keep. Once the result is ``unwanted``, it
    is what has been played so far. After ``limit`` steps an episode is stopped, unless that is 0. As published, actions
    are drawn from the policy; with ``deterministic`` they are its likeliest.
    """
    limited = LengthLimit(options, limit)
    options = with_mode(limited.options)
    side_by_side = MOST_ENVS if options.mode == "inline" else options.envs
    envs = make_vector(options, seed, envs=min(episodes, side_by_side))
    player = Player(envs, agent, torch.Generator(agent.device).manual_seed(seed), deterministic)
    share = np.full(envs.size, episodes // envs.size) + (np.arange(envs.size) < episodes % envs.size)
    scores, finished, fits = Scores(envs.size), [], []
    start = player.carry.latent.deter  # where each goal was chosen
    recording, recorded = Recording(), record == 0
    try:
        while share.any():
            step, idle = player.observe(), share == 0
            for index, episode in scores.add(step):
                if share[index]:
                    share[index] -= 1
                    finished.append(episode)
            limited.watch(scores.length[~idle])
            before, previous_action = player.carry, player.action
            player.act(step)
            carry = player.carry
            if not recorded:
                recording.add(step, previous_action, carry)
                recorded = bool(step.last[0]) or len(recording) == record
            skipped = torch.as_tensor(step.first | idle, device=agent.device)
            fits.append(agent.behavior.goal_outcomes(before.goal, before.age, carry.latent, skipped, start))
            start = torch.where((carry.age == 1)[:, None], carry.latent.deter, start)
            if unwanted():
                break
    finally:
        envs.close()
    return Evaluation(finished, recording, torch.cat(fits).cpu().numpy())


def restore_agent(
    path: Path,
    device: str,
    env: str | None = None,
    plugins: list[str] | None = None,
    overrides: Sequence[str] = (),
    *,
    trust: bool = False,
) -> tuple[Agent, Config]:
    """The agent in a checkpoint, ready to play, and its configuration, changed by ``overrides`` (section.key=value).

    ``env`` names another environment.

    Raises StoredDataError, DeviceError, EnvironmentFailure, and ConfigError for an environment that cannot be made, or
    that runs code which the checkpoint names, unless its source is to be trusted.
    """
    chosen = choose_device(device)
    config, state = checkpoint.load_run(path)
    values: dict[str, Any] = {} if env is None else {"env.name": env, "env.mode": "auto"}
    values |= {} if plugins is None else {"env.plugins": plugins}
    stored = config.model_dump(mode="json")
    config = configuration.settle(stored, str(path), overrides, values, trust)
    set_up(config.run.threads, config.run.kernels)
    options = config.agent, config.world, config.behavior, config.hierarchy
    agent = Agent(*options, spaces_of(config.env), chosen, intrinsic=config.intrinsic)
    with explained(stored, config.model_dump(mode="json")):
        agent.restore_model(state)
    return agent, config
