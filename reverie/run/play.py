"""Playing for an audience: films of episodes, and of what the world model dreams of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from reverie.agent import Agent
from reverie.env import EnvOptions, make_vector
from reverie.run import video
from reverie.run.collect import Scores
from reverie.run.evaluate import RECORDED, Recording, dream_along, show_goals


def play(agent: Agent, options: EnvOptions, episodes: int, seed: int, output: Path) -> Iterator[str]:
    """Plays ``episodes`` one after another; writes ``episode_<n>`` and ``dream_<n>_<key>`` videos into ``output``.

    A dream is of the first `RECORDED` steps. An environment that cannot draw itself is filmed by its dream alone.
    Yields a line per episode and per file.
    """
    envs = make_vector(options.model_copy(update={"mode": "inline"}), seed, envs=1)
    generator = torch.Generator(agent.device).manual_seed(seed)
    carry, scores = agent.initial(1), Scores(1)
    action = carry.action.cpu().numpy()
    try:
        for number in range(1, episodes + 1):
            frames, recording, finished = [], Recording(), []
            while not finished:
                step = envs.step(action)
                if (frame := envs.render()) is not None:
                    frames.append(frame)
                finished = scores.add(step.reward, step.first, step.last)
                previous_action = action
                action, carry = agent.act(step, carry, generator)
                if len(recording) < RECORDED:
                    recording.add(step, previous_action, carry)
            episode = finished[0][1]
            yield f"episode {number}: return {episode.total:.1f}, length {episode.length}"
            if frames:
                yield f"  {video.write(output / f'episode_{number}.mp4', np.stack(frames))}"
            truth, dream = dream_along(agent, recording)
            goals = show_goals(agent, recording)
            for key in truth:
                path = output / f"dream_{number}_{key}.mp4"
                frames = video.side_by_side(truth[key], dream[key], context=5, goal=goals.get(key))
                yield f"  {video.write(path, frames)}"
    finally:
        envs.close()
