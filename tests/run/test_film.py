"""What films show of a recorded episode: where the reward of each step came from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from reverie.agent import Agent
from reverie.behavior.intrinsic import IntrinsicOptions
from reverie.behavior.intrinsic.pay import PayOptions
from reverie.run.evaluate import Recording
from reverie.run.film import films, reward_shares
from reverie.run.video import STRIP
from tests.core import CHOICE, PLANNED, VECTORS, close, make_agent, make_batch, step_of

CURIOUS = IntrinsicOptions(curiosity=PayOptions(kind="icm", warmup=1), every=1)


def recorded(agent: Agent, rewards: list[float]) -> Recording:
    recording, carry, action = Recording(), agent.initial(1), np.zeros((1, 3), np.float32)
    for t, reward in enumerate(rewards):
        step = replace(step_of(agent, envs=1, seed=t, first=not t), reward=np.array([reward], np.float32))
        previous = action
        action, carry = agent.act(step, carry)
        recording.add(step, previous, carry)
    return recording


def test_shares_are_of_weighted_rewards_over_their_scales():
    agent = make_agent(VECTORS, CHOICE, intrinsic=CURIOUS)
    agent.behavior.worker.mixer.return_high.copy_(torch.tensor([4.0, 0.5]))
    agent.rewards = lambda dream: {"curiosity": torch.tensor([[1.0, 0.0, 2.0]])}  # type: ignore[method-assign]
    shares = reward_shares(agent, recorded(agent, [9.0, -2.0, 0.0, 0.0]))
    close(torch.tensor(shares["extrinsic"]), [0.0, 5 / 7, 0.0, 0.0])
    close(torch.tensor(shares["curiosity"]), [0.0, 2 / 7, 0.0, 1.0])


@pytest.mark.parametrize("planned", [False, True])
def test_what_an_agent_pays_itself_for_real_steps_is_shown_under_its_films(planned):
    agent = make_agent(VECTORS, CHOICE, intrinsic=CURIOUS, **({"hierarchy": PLANNED} if planned else {}))
    agent.learn(make_batch(agent.world))
    recording = recorded(agent, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    shares = reward_shares(agent, recording)
    assert list(shares) == list(agent.behavior.levels[0].streams)
    close(torch.tensor(np.stack(list(shares.values()))).sum(0), [0.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert 0 < shares["curiosity"][1] < shares["curiosity"][2]
    (key, frames, track), *_ = films(agent, recording)
    alone = make_agent(VECTORS, CHOICE)
    assert reward_shares(alone, recorded(alone, [0.0, 1.0])) == {}
    plain = next(films(alone, recorded(alone, [0.0] * 6)))
    assert plain[0] == key and frames.shape[1] == plain[1].shape[1] + STRIP and track is None
    assert reward_shares(agent, recorded(agent, [0.0])) == {}
