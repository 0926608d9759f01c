"""The mixer: what each stream of reward counts for, and that one which counts for nothing changes nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import reverie.agent
from reverie.agent import Agent
from reverie.behavior.mixer import Mixer
from reverie.behavior.streams import Schedule, Stream
from reverie.errors import ConfigError
from reverie.optim import PolicyOptimizerOptions
from reverie.types import Metrics, Rollout
from tests.core import PASSES, TASK, close, make_agent, make_batch

PAIR = {"extrinsic": Stream(1.0, 333), "novelty": Stream(0.1, 100, floor=0.05)}


LOW = {name: replace(stream, floor=0.05) for name, stream in PAIR.items()}
"""Whose scales all begin with the first batch."""


def rollout_of(*rewards: Tensor, own: Tensor | None = None) -> Rollout:
    """Rewards [R, L] of every stream, and nothing else."""
    reward = torch.stack(rewards, -1).float()
    none, inputs = torch.zeros(*reward.shape[:2], 3), torch.zeros(len(reward), reward.shape[1] + 1, 4)
    return Rollout(none, inputs, none, none[..., 0], reward, torch.zeros_like(reward), none[..., 0] + 1, own=own)


def mix(mixer: Mixer, *rewards: Tensor, value: Tensor | None = None) -> tuple[Tensor, Metrics]:
    """The advantage where every edge returns its reward, in one rollout of the level's own."""
    rollout = rollout_of(*(numbers[None] for numbers in rewards))
    return mixer.mix(rollout, rollout.reward, torch.zeros_like(rollout.reward) if value is None else value)


# --- one stream: the published scale ---


def test_the_spread_of_returns_is_averaged_from_zero():
    mixer, seen = Mixer(TASK, 0.01, False), []
    for values in (torch.arange(1001), torch.arange(1001), torch.arange(0, 2001, 2)):
        _, metrics = mix(mixer, values)
        seen.append([mixer.return_low.item(), metrics["return_scale"].item()])
    close(torch.tensor(seen), [[0.5, 9.0], [0.995, 17.91], [1.98505, 35.7309]])


def test_percentiles_are_interpolated():
    mixer = Mixer(TASK, 1.0, False)
    mix(mixer, torch.arange(10))
    close(torch.cat([mixer.return_low, mixer.return_high]), [0.45, 8.55])


def test_a_small_spread_does_not_magnify_advantages():
    values = torch.tensor([1e-4, -1e-4, 2e-4, -2e-4])
    advantage, metrics = mix(Mixer(TASK, 0.01, False), values)
    assert metrics["return_scale"] == 1.0
    close(advantage[0], values, atol=0)


def test_a_large_spread_divides_advantages():
    mixer, values = Mixer(TASK, 0.01, False), torch.arange(101) / 10
    _, metrics = mix(mixer, values)
    close(torch.cat([mixer.return_low, mixer.return_high]), [0.005, 0.095])
    assert metrics["return_scale"] == 1.0
    for _ in range(99):
        advantage, metrics = mix(mixer, values)
    close(torch.cat([mixer.return_low, mixer.return_high]), [0.316984, 6.022693])
    close(metrics["return_scale"], 5.705709)
    close(advantage[0], values / 5.705709)


# --- several streams ---


def test_advantages_count_by_weight_over_their_own_spread():
    """Spreads of 5 and 0.05 make (0, 10) and (0, 0.1) the same; weights of 1 and 0.1 make (0, 2.2) of them."""
    mixer = Mixer(PAIR, 1e-9, False)
    mixer.return_high.copy_(torch.tensor([5.0, 0.01]))
    mixer.started.fill_(1.0)
    advantage, metrics = mix(mixer, torch.tensor([0.0, 10.0]), torch.tensor([0.0, 0.1]))
    close(advantage, [[0.0, 2.2]])
    close(metrics["share_novelty"], 0.2 / 2.2)
    close(metrics["share_extrinsic"] + metrics["share_novelty"], 1.0)
    close(torch.stack([metrics["weight_extrinsic"], metrics["weight_novelty"]]), [1.0, 0.1])
    advantage, metrics = mix(mixer, torch.zeros(2), torch.tensor([0.0, 0.1]))
    close(advantage, [[0.0, 0.2]])
    assert metrics["share_novelty"] == 1.0
    advantage, metrics = mix(mixer, torch.zeros(2), torch.zeros(2))
    assert not advantage.any() and metrics["share_novelty"] == metrics["share_extrinsic"] == 0


@pytest.mark.parametrize(
    ("floor", "spread", "errors", "advantage"),
    [
        (1.0, 1.0, [2.0, 3.0], 0.8),
        (0.05, 1.0, [2.0, 3.0], 1.1),
        (0.05, 2.2, [2.0, 3.0], 0.5),
        (1.0, 1.0, [0.02, 0.0], 0.005),
        (0.05, 1.0, [0.02, 0.0], 0.005),
    ],
)
def test_a_normalised_level_divides_by_the_running_deviation(floor, spread, errors, advantage):
    streams = {name: replace(stream, floor=floor) for name, stream in PAIR.items()}
    mixer = Mixer(streams, 1e-9, True)
    mixer.return_high.copy_(torch.tensor([4.0, 0.5]))
    mixer.advantage_std.fill_(spread)
    mixer.started.fill_(1.0)
    close(mix(mixer, *torch.tensor(errors).expand(2, 2).T)[0], torch.full((1, 2), advantage))
    assert mixer.advantage_std.item() == pytest.approx(spread)


def test_statistics_are_those_of_each_stream_where_the_level_chose_itself():
    mixer = Mixer({name: replace(stream, floor=0.5) for name, stream in PAIR.items()}, 0.01, True)
    own = torch.tensor([[1.0, 2.0, 6.0]]), torch.tensor([[0.5, 0.5, 2.0]])
    foreign = torch.tensor([[90.0, -70.0, 0.0]]), torch.tensor([[40.0, 0.0, 8.0]])
    pairs = (torch.cat(pair) for pair in zip(own, foreign, strict=True))
    rollout = rollout_of(*pairs, own=torch.tensor([True, False]))
    value = 0.1 * torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0))
    advantage, metrics = mixer.mix(rollout, rollout.reward, value)
    rewards, value = rollout.reward[0], value[0]
    parts = (rewards - value) / (mixer.return_high - mixer.return_low).clamp(min=0.5)
    for i, (stream, suffix) in enumerate({"extrinsic": "", "novelty": "_novelty"}.items()):
        missed, spread = rewards[:, i] - value[:, i], rewards[:, i].std()
        expected = {
            f"return{suffix}": (3.0, 1.0)[i],
            f"return_std{suffix}": (7.0, 0.75)[i] ** 0.5,
            f"dream_reward{suffix}": (3.0, 1.0)[i],
            f"value{suffix}": value[:, i].mean(),
            f"explained_variance{suffix}": 1 - missed.var() / spread.square(),
            f"advantage_mean_{stream}": parts[:, i].mean(),
            f"advantage_std_{stream}": parts[:, i].std(),
            f"advantage_max_{stream}": parts[:, i].abs().max(),
        }
        for name, number in expected.items():
            close(metrics[name], number, rtol=1e-4)
    mine = advantage[0]
    for name, number in {"mean": mine.mean(), "std": mine.std(), "max": mine.abs().max()}.items():
        close(metrics[f"advantage_{name}"], number, rtol=1e-4)


def test_one_dream_that_is_not_finite_hardly_moves_a_scale():
    mixer = Mixer(LOW, 0.01, True)
    mix(mixer, torch.arange(8.0), torch.arange(8.0))
    before = [scale.clone() for scale in (mixer.return_low, mixer.return_high, mixer.advantage_std)]
    mix(mixer, torch.tensor([math.nan, *range(7)]), torch.arange(8.0))
    for old, scale in zip(before, (mixer.return_low, mixer.return_high, mixer.advantage_std), strict=True):
        close(scale, old, rtol=0.01)


def test_a_scale_under_a_small_floor_starts_with_the_first_batch_and_is_averaged_then():
    mixer = Mixer(LOW, 0.01, True)
    extrinsic, novelty = torch.arange(101) / 10, torch.arange(101) / 100
    advantage, _ = mix(mixer, extrinsic, novelty)
    close(mixer.return_low, [0.5, 0.05])
    close(mixer.return_high, [9.5, 0.95])
    expected = extrinsic / 9.0 + 0.1 * novelty / 0.9
    close(mixer.advantage_std, expected.std())
    close(advantage[0], expected / expected.std())
    mix(mixer, torch.zeros(101), torch.zeros(101))
    close(mixer.return_high, [0.99 * 9.5, 0.99 * 0.95])
    close(mixer.advantage_std, 0.99 * expected.std())


def test_advantages_of_several_streams_keep_their_mean():
    advantage, _ = mix(Mixer(PAIR, 0.01, True), 5 + torch.arange(9) / 10, torch.zeros(9))
    assert advantage.min() > 0


# --- streams that come and go ---


def test_a_silent_stream_begins_its_scale_when_it_first_pays_and_never_bursts():
    streams = {"extrinsic": Stream(1.0, 333), "late": Stream(0.1, 100, floor=0.05, silent=True)}
    late, early = (
        Mixer(streams, 0.01, False),
        Mixer(streams | {"late": replace(streams["late"], silent=False)}, 0.01, False),
    )
    bonus, task = torch.arange(101) / 100, torch.zeros(101)
    for mixer in (late, early):
        for _ in range(20):
            mix(mixer, task, torch.zeros(101))
    for mixer, largest in ((late, 0.1 / 0.9), (early, 0.1 / 0.05)):
        close(mix(mixer, task, bonus)[0].max(), largest)
    close(late.return_high, [0.0, 0.95])
    assert late.started.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        (Schedule(), [1.0, 1.0, 1.0, 1.0]),
        (Schedule(kind="linear", decay=4, final=0.25), [1.0, 0.5, 0.25, 0.25]),
        (Schedule(kind="exponential", decay=2, final=0.1), [1.0, 0.5, 0.25, 0.1]),
        (Schedule(kind="until", decay=2), [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_weights_follow_their_schedule(schedule, shares):
    mixer = Mixer({"extrinsic": Stream(1.0, 333), "bonus": Stream(0.2, 100, schedule=schedule)}, 0.01, False)
    seen = []
    for updates in (0.0, 2.0, 4.0, 50.0):
        mixer.updates.fill_(updates)
        advantage, metrics = mix(mixer, torch.zeros(3), torch.tensor([0.0, 0.5, 1.0]))
        seen.append(metrics["weight_bonus"])
        close(advantage[0, 2], metrics["weight_bonus"])
        assert metrics["weight_extrinsic"] == 1.0 and mixer.updates == updates + 1
    close(torch.stack(seen), 0.2 * torch.tensor(shares))


@pytest.mark.parametrize("wrong", [{"kind": "cosine"}, {"kind": "linear"}, {"final": 1.5}])
def test_a_schedule_without_sense_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"^Schedule(\.\w+)? = .*: (choose|a schedule|should)"):
        Schedule(**wrong)


def test_the_critics_errors_in_a_stream_count_in_proportion_where_it_hardly_counts():
    weights = {"extrinsic": 0.0, "much": 0.1, "little": 0.01, "none": 0.0}
    mixer = Mixer({name: Stream(weight, 100) for name, weight in weights.items()}, 0.01, False)
    close(mixer.critic_weight, [1.0, 1.0, 0.2, 0.0])


# --- continuity ---


def learn_beside(monkeypatch: pytest.MonkeyPatch, weight: float | None, task: float = 1.0) -> Agent:
    """An agent after some updates, beside a toy motive that pays for a large state, if it has a weight."""
    streams = {"extrinsic": Stream(task, 333)}
    if weight is not None:
        streams["toy"] = Stream(weight, 100, episodic=False, floor=0.05)
    monkeypatch.setattr(reverie.agent, "default_streams", lambda *options: {"policy": streams})
    monkeypatch.setattr(Agent, "rewards", lambda agent, dream: {"toy": 5 * dream.latent.deter[:, 1:].mean(-1)})
    agent = make_agent(behavior=PASSES, optimizer=PolicyOptimizerOptions(rate=1e-3))
    level, generator = agent.behavior.worker, torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in agent.parameters():
            task_head = parameter[: len(level.bins)]
            task_head.add_(0.1 * torch.randn(task_head.shape, generator=generator))
        for head in (agent.world.reward_head, level.critic, level.slow_critic):  # far bins would magnify rounding
            list(head)[-1].bias.view(-1, len(level.bins)).sub_(
                0.5 * ((torch.arange(len(level.bins)) - 127) / 6).square()
            )
    for seed in range(5):
        agent.learn(make_batch(agent.world, seed=seed))
    return agent


@torch.no_grad()
def apart(agent: Agent, other: Agent) -> float:
    """How far apart two agents are in what both have: of the critic's last layer, the task's head."""
    pairs = zip(agent.parameters(), other.parameters(), strict=True)
    return max(float((mine[: len(its)] - its[: len(mine)]).abs().max()) for mine, its in pairs)


def test_a_motive_that_hardly_counts_changes_hardly_anything(monkeypatch):
    """Nothing jumps as a weight goes to zero: at a millionth, what is left is of the size of rounding."""
    without = learn_beside(monkeypatch, None)
    assert apart(learn_beside(monkeypatch, 1e-6), without) < 1e-6
    assert apart(learn_beside(monkeypatch, 0.1), without) > 1e-3


def test_without_the_tasks_reward_its_value_is_still_learned(monkeypatch):
    free, paid = (learn_beside(monkeypatch, 0.1, task) for task in (0.0, 1.0))
    inputs = torch.randn(5, free.world.sizes.features, generator=torch.Generator().manual_seed(0))
    assert free.behavior.worker.task == 0 and bool(free.behavior.worker.value(inputs)[:, 0].any())
    assert "replay_value" in free.optimizers["critic"].scales
    assert apart(free, paid) > 1e-3
    metrics, _ = free.learn(make_batch(free.world))
    assert metrics["policy/share_extrinsic"] == 0 and metrics["policy/share_toy"] == 1
    assert metrics["policy/return"] != 0
