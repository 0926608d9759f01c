"""Playing for an audience: films of episodes, and of what the world model dreams of one."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import torch

from reverie.agent import Agent
from reverie.env import EnvOptions, make_vector
from reverie.env.worker import Failure
from reverie.run import video
from reverie.run.collect import Episode, Player, Scores
from reverie.run.evaluate import RECORDED, LengthLimit, Recording
from reverie.run.film import films
from reverie.run.soundtrack import empty_track, with_rates

log = logging.getLogger(__name__)


def play(
    agent: Agent,
    options: EnvOptions,
    episodes: int,
    seed: int,
    output: Path,
    limit: int = 0,
    deterministic: bool = False,
) -> Iterator[str]:
    """Plays ``episodes`` one after another; writes ``episode_<n>`` and ``dream_<n>_<key>`` videos into ``output``.

    A dream is of the first `RECORDED` steps; of its sound, the truth is on the left and the dream on the right. An
    environment that cannot draw itself is filmed by its dream alone. After ``limit`` steps an episode is stopped,
    unless that is 0. With ``deterministic``, actions are the policy's likeliest.
    Yields a line per episode and per file.
    """
    limited = LengthLimit(options, limit)
    envs = make_vector(limited.options.model_copy(update={"mode": "inline"}), seed, envs=1)
    player = Player(envs, agent, torch.Generator(agent.device).manual_seed(seed), deterministic)
    stage = _Stage(player, limited)
    try:
        for number in range(1, episodes + 1):
            frames, path = stage.episode(), output / f"episode_{number}.mp4"
            first = next(frames, None)
            film = None if first is None else video.write(path, itertools.chain([first], frames), track=stage.track)
            told = "".join(f", {name} {value:g}" for name, value in stage.finished.info.items())
            yield f"episode {number}: return {stage.finished.total:.1f}, length {stage.finished.length}{told}"
            if film is not None:
                yield f"  {film}"
            for key, frames, track in films(agent, stage.recording):
                yield f"  {video.write(output / f'dream_{number}_{key}.mp4', frames, track=track)}"
    finally:
        envs.close()


class _Stage:
    """One environment and the agent that plays in it; an episode is filmed while it goes on."""

    finished: Episode
    recording: Recording

    def __init__(self, player: Player, limited: LengthLimit):
        self.player, self.scores, self.limited = player, Scores(1), limited
        self.draws = True
        world = player.agent.world
        self.track = empty_track(with_rates(world.observation, world.options.modalities))

    def episode(self) -> Iterator[video.Frame]:
        """Plays an episode to its end; yields what the environment draws, if it can."""
        self.recording, finished = Recording(), []
        if self.track is not None:
            self.track.heard.clear()
        while not finished:
            step, previous_action = self.player.observe(), self.player.action
            finished = self.scores.add(step)
            self.limited.watch(self.scores.length)
            self.player.act(step)
            if len(self.recording) < RECORDED:
                self.recording.add(step, previous_action, self.player.carry)
            if (frame := self._draw()) is not None:
                if self.track is not None:
                    self.track.hear(step.obs)
                yield frame
        self.finished = finished[0][1]

    def _draw(self) -> video.Frame | None:
        try:
            return self.player.envs.render()
        except Failure as failure:
            if self.draws:
                log.warning(
                    "%s cannot draw itself, which films only what it dreams: %s", self.player.envs.name, failure.summary
                )
            self.draws = False
            return None
