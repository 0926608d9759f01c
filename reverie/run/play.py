"""Playing for an audience: films of episodes, and of what the world model dreams of one."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import torch

from reverie.agent import Agent
from reverie.env import EnvOptions, make_vector
from reverie.env.vector import VectorEnv
from reverie.env.worker import Failure
from reverie.run import video
from reverie.run.collect import Episode, Scores
from reverie.run.evaluate import RECORDED, LengthLimit, Recording, dream_along, show_goals

log = logging.getLogger(__name__)


def play(agent: Agent, options: EnvOptions, episodes: int, seed: int, output: Path, limit: int = 0) -> Iterator[str]:
    """Plays ``episodes`` one after another; writes ``episode_<n>`` and ``dream_<n>_<key>`` videos into ``output``.

    A dream is of the first `RECORDED` steps. An environment that cannot draw itself is filmed by its dream alone. After
    ``limit`` steps an episode is stopped, unless that is 0. Yields a line per episode and per file.
    """
    limited = LengthLimit(options, limit)
    envs = make_vector(limited.options.model_copy(update={"mode": "inline"}), seed, envs=1)
    stage = _Stage(envs, agent, seed, limited)
    try:
        for number in range(1, episodes + 1):
            frames, path = stage.episode(), output / f"episode_{number}.mp4"
            first = next(frames, None)
            film = None if first is None else video.write(path, itertools.chain([first], frames))
            yield f"episode {number}: return {stage.finished.total:.1f}, length {stage.finished.length}"
            if film is not None:
                yield f"  {film}"
            truth, dream = dream_along(agent, stage.recording)
            goals = show_goals(agent, stage.recording)
            for key in truth:
                path = output / f"dream_{number}_{key}.mp4"
                frames = video.side_by_side(truth[key], dream[key], context=5, goal=goals.get(key))
                yield f"  {video.write(path, frames)}"
    finally:
        envs.close()


class _Stage:
    """One environment and the agent that plays in it; an episode is filmed while it goes on."""

    finished: Episode
    recording: Recording

    def __init__(self, envs: VectorEnv, agent: Agent, seed: int, limited: LengthLimit):
        self.envs, self.agent, self.scores, self.limited = envs, agent, Scores(1), limited
        self.draws = True
        self.generator = torch.Generator(agent.device).manual_seed(seed)
        self.carry = agent.initial(1)
        self.action = self.carry.action.cpu().numpy()

    def episode(self) -> Iterator[video.Frame]:
        """Plays an episode to its end; yields what the environment draws, if it can."""
        self.recording, finished = Recording(), []
        while not finished:
            step = self.envs.step(self.action)
            finished = self.scores.add(step.reward, step.first, step.last)
            self.limited.watch(self.scores.length)
            previous_action = self.action
            self.action, self.carry = self.agent.act(step, self.carry, self.generator)
            if len(self.recording) < RECORDED:
                self.recording.add(step, previous_action, self.carry)
            if (frame := self._draw()) is not None:
                yield frame
        self.finished = finished[0][1]

    def _draw(self) -> video.Frame | None:
        try:
            return self.envs.render()
        except Failure as failure:
            if self.draws:
                log.warning(
                    "%s cannot draw itself, which films only what it dreams: %s", self.envs.name, failure.summary
                )
            self.draws = False
            return None
