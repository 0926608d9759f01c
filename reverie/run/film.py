"""What a recorded episode shows: what happened beside what was dreamed, its goals, and where reward came from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float

from reverie.agent import Agent
from reverie.behavior.streams import TASK
from reverie.imagine import open_loop
from reverie.run import video
from reverie.run.evaluate import Recording
from reverie.run.soundtrack import Track, track_of, with_rates
from reverie.types import Dream, Goal, stack

CONTEXT = 5
"""Steps that the world model sees before it dreams."""


def films(agent: Agent, recording: Recording) -> Iterator[tuple[str, video.Frames, Track | None]]:
    """By observation key: truth beside dream and goal, over a strip of where the reward of each step came from.

    With each comes what is to be heard beside it: the truth, and the dream.
    """
    truth, dream = dream_along(agent, recording, CONTEXT)
    goals, shares = show_goals(agent, recording), reward_shares(agent, recording)
    observation = with_rates(agent.world.observation, agent.world.options.modalities)
    track = track_of(observation, truth, dream)
    for key in truth:
        spec = observation[key]
        frames = video.side_by_side(truth[key], dream[key], context=CONTEXT, goal=goals.get(key), spec=spec)
        yield key, video.over_shares(frames, shares) if shares else frames, track


@torch.no_grad()
def show_goals(agent: Agent, recording: Recording) -> dict[str, np.ndarray]:
    """The goals of a recording as the world model would see them, by key [T, ...]; empty where goals are no states."""
    if agent.behavior.goals is None or not agent.behavior.goals.paints:
        return {}
    shown = agent.world.decode(agent.world.prior_mode(torch.stack(recording.target)))
    return {key: value.cpu().numpy() for key, value in shown.items()}


def dream_along(agent: Agent, recording: Recording, context: int = 5) -> tuple[dict[str, np.ndarray], ...]:
    """The recorded observations [T, ...] by key, and what the world model expected after ``context`` of them."""
    steps, device = len(recording), agent.device
    truth = {key: np.stack([obs[key] for obs in recording.obs]) for key in recording.obs[0]}
    action = torch.as_tensor(np.stack(recording.previous_action), device=device)[None]
    dream = open_loop(
        agent.world,
        {key: torch.as_tensor(value, device=device)[None] for key, value in truth.items()},
        action,
        torch.arange(steps, device=device)[None] == 0,
        min(context, steps),
        torch.Generator(device).manual_seed(0),
    )
    return truth, {key: value[0].cpu().numpy() for key, value in dream.items()}


@torch.no_grad()
def reward_shares(agent: Agent, recording: Recording) -> dict[str, Float[np.ndarray, "T"]]:
    """By stream, its share of what the first level was paid for each step, by weight and over the stream's scale.

    All are zero where nothing was paid, as before the first step. There is none where the level has one stream alone,
    and none of a single observation.
    """
    level, steps = agent.behavior.levels[0], len(recording)
    if len(level.streams) == 1 or steps == 1:
        return {}
    action = torch.as_tensor(np.stack(recording.previous_action)[1:], device=agent.device)[None]
    target, nothing = torch.stack(recording.target)[None], action[..., :0]
    path = Dream(
        latent=stack(recording.latent),
        action=action,
        policy=nothing,
        logprob=nothing.sum(-1),
        continues=action.new_ones(1, steps),
        reward={TASK: action.new_tensor(recording.reward[1:])[None]},
        goal=Goal(target, target),
        goal_policy=nothing,
        goal_logprob=nothing.sum(-1),
        own=action.new_ones(1, dtype=torch.bool),
    )
    rewards = path.reward | agent.rewards(path)
    weight = level.mixer.weigh(level.numbers) / level.mixer.scale
    paid = torch.stack([rewards[name][0] for name in level.streams], -1).abs() * weight
    share = (paid / paid.sum(-1, keepdim=True).clamp(min=1e-8)).cpu().numpy()
    return dict(zip(level.streams, np.concatenate([np.zeros_like(share[:1]), share]).T, strict=True))
