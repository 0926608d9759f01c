"""What the tests of the core share: small agents, batches of noise, and the filling rule of the golden numbers.

The golden numbers come from the published implementation, whose parameters were filled with sines by `fill`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reverie.agent import NO_INTRINSIC, Agent, AgentOptions
from reverie.behavior import views
from reverie.behavior.actor_critic import ActorCritic, BehaviorOptions, ReplayValue, Targets
from reverie.behavior.build import build, default_streams
from reverie.behavior.hierarchy import Hierarchy, HierarchyOptions
from reverie.behavior.intrinsic import IntrinsicOptions
from reverie.behavior.ppo import improve
from reverie.behavior.streams import Stream
from reverie.learned_rates import FIXED, MetaOptions
from reverie.nets.distributions import ActionDistribution
from reverie.nets.layers import MLP
from reverie.optim import Optimizer, OptimizerOptions, PolicyOptimizerOptions
from reverie.types import (
    ActionPart,
    ActionSpec,
    Batch,
    Dream,
    Explained,
    Goal,
    Latent,
    Metrics,
    ObservationSpec,
    Rollout,
    Step,
    action_width,
)
from reverie.world.model import MultimodalWorldModel
from reverie.world.options import WorldOptions

IMAGE = {"image": ObservationSpec((8, 8, 3), "uint8")}
VECTORS = {
    "gear": ObservationSpec((), "int64", 3),
    "height": ObservationSpec((), "float32"),
    "velocity": ObservationSpec((5,), "float32"),
}
SENSES = {
    "hear": ObservationSpec((64,), "int16", kind="audio", rate=8_000, optional=True),
    "hear/present": ObservationSpec((), "bool", 2),
    "say": ObservationSpec((6,), "uint8", kind="text"),
    "tell": ObservationSpec((4,), "uint16", 300, kind="text", tokenizer="{}"),
}
STEER = (ActionPart("steer", 2, False),)
CHOICE = (ActionPart("choice", 3, True),)

SMALL = WorldOptions(
    deter=16, hidden=8, stoch=4, classes=4, units=16, depth=2, embed_dim=12, layers=2, blocks=2, bins=255
)

PUBLISHED = OptimizerOptions()
"""One LaProp with adaptive clipping trains everything."""
TASK = {"extrinsic": Stream(1.0, 333)}
"""The environment's reward alone."""
FLAT = HierarchyOptions(enabled=False)
PLANNED = HierarchyOptions(enabled=True, period=2, goal_warmup=0)
"""A manager, with two goals in each dream of `make_agent`."""
ONE_PASS = BehaviorOptions(epochs=1, minibatches=1)
"""The published actor loss."""
PASSES = BehaviorOptions(epochs=2, minibatches=4)
CONSTANT = OptimizerOptions(warmup=0, rate=0.003)


def make_world(
    observation: Mapping[str, ObservationSpec] = VECTORS,
    action: ActionSpec = CHOICE,
    **changes: Any,
) -> MultimodalWorldModel:
    torch.manual_seed(0)
    return MultimodalWorldModel(observation, action, SMALL.model_copy(update=changes))


def make_agent(
    observation: Mapping[str, ObservationSpec] = VECTORS,
    action: ActionSpec = CHOICE,
    *,
    behavior: BehaviorOptions = ONE_PASS,
    hierarchy: HierarchyOptions = FLAT,
    optimizer: OptimizerOptions = PUBLISHED,
    seed: int = 0,
    device: str = "cpu",
    meta: MetaOptions = FIXED,
    intrinsic: IntrinsicOptions = NO_INTRINSIC,
    **options: Any,
) -> Agent:
    """``optimizer`` trains every group; ``options`` are of the agent."""
    policy = PolicyOptimizerOptions(**optimizer.model_dump())
    groups = {"world_optimizer": optimizer, "horizon": 4}
    groups |= dict.fromkeys(("actor_optimizer", "critic_optimizer"), policy)
    hierarchy = hierarchy.model_copy(update={"goal_optimizer": policy})
    spaces = (dict(observation), action)
    chosen = AgentOptions(**groups | options), SMALL, behavior, hierarchy
    return Agent(*chosen, spaces, torch.device(device), seed, meta, intrinsic)


def shake(module: nn.Module, size: float = 0.1, seed: int = 0) -> None:
    """Moves every parameter, so that no zero of the initialisation hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter.device))


def draw(observation: Mapping[str, ObservationSpec], shape: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    """Random observations of every key."""
    generator, obs = torch.Generator().manual_seed(seed), {}
    for key, spec in observation.items():
        whole = (*shape, *spec.shape)
        if spec.dtype == "float32":
            obs[key] = torch.randn(whole, generator=generator)
        else:
            numbers = torch.randint(spec.classes or 256, whole, generator=generator)
            obs[key] = numbers.to(getattr(torch, spec.dtype))
    return obs


def make_batch(
    world: MultimodalWorldModel, action: ActionSpec = CHOICE, rows: int = 3, steps: int = 6, seed: int = 0
) -> Batch:
    """Replayed noise without an episode's end."""
    generator, sizes = torch.Generator().manual_seed(seed), world.sizes
    actions = torch.rand(rows, steps + 1, action_width(action), generator=generator) * 2 - 1
    if all(part.discrete for part in action):
        actions = torch.nn.functional.one_hot(actions.argmax(-1), actions.shape[-1]).float()
    never = torch.zeros(rows, steps, dtype=torch.bool)
    stored = torch.randint(sizes.classes, (rows, sizes.stoch), generator=generator).to(torch.uint8)
    return Batch(
        obs=draw(world.observation, (rows, steps), seed),
        action=actions[:, 1:],
        reward=torch.randn(rows, steps, generator=generator),
        first=never,
        last=never,
        terminal=never,
        slot=torch.arange(rows * steps).view(rows, steps),
        context_action=actions[:, 0],
        context_latent={"deter": torch.rand(rows, sizes.deter, generator=generator) - 0.5, "stoch": stored},
    )


NEVER = torch.zeros(1, 1, dtype=torch.bool)
NO_BATCH = Batch(
    *({}, torch.zeros(1, 1, 0), torch.zeros(1, 1), NEVER, NEVER, NEVER),
    slot=torch.zeros(1, 1, dtype=torch.long),
    context_action=torch.zeros(1, 0),
    context_latent={},
)
"""One replayed step of which nothing is known."""


def explained(deter: Tensor) -> Explained:
    """Replayed states of which nothing is known but ``deter`` [..., D]."""
    none = deter.new_zeros(*deter.shape[:-1], 0, 0)
    latent = Latent(deter, none, none)
    return Explained(
        latent=latent,
        tokens=torch.zeros(1, 1, 0),
        walk=lambda *walk: latent,
        continues=lambda features: torch.ones(features.shape[:-1]),
        pursue=lambda *walk: latent,
    )


def dream_starts(world: MultimodalWorldModel) -> Latent:
    """Eighteen states: six of each of three sequences."""
    latent = world.observe(make_batch(world), uniform(3, 6, world.sizes.stoch))[0].detach()
    return Latent(*(field.flatten(0, 1) for field in latent.fields))


def step_of(agent: Agent, envs: int = 3, seed: int = 0, first: Any = False) -> Step:
    """Noise from several environments, of which ``first`` begin."""
    obs = {key: value.numpy() for key, value in draw(agent.world.observation, (envs,), seed).items()}
    never = np.zeros(envs, bool)
    return Step(obs, np.zeros(envs, np.float32), never | first, never, never)


def values(agent: Agent) -> dict[str, Tensor]:
    """A copy of all parameters and statistics."""
    return {name: value.clone() for name, value in agent.state_dict().items()}


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def sines(shape: tuple[int, ...], rank: int, *, norm: bool = False) -> Tensor:
    """``0.3 sin(1.7 n + rank / 10)`` over the row-major index n; a norm's scale is ``1 + 0.2 sin(0.9 n + ...)``."""
    n = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    values = 1 + 0.2 * torch.sin(0.9 * n + 0.1 * rank) if norm else 0.3 * torch.sin(1.7 * n + 0.1 * rank)
    return values.float().view(shape)


def fill(*layers: nn.Module) -> None:
    """Fills layers in the order given; each takes one rank for its bias and one for its kernel, or one for its scale.

    The published kernels are stored [inputs, outputs] or [height, width, inputs, outputs].
    """
    ranks: Iterator[int] = iter(range(1, 1000))
    with torch.no_grad():
        for layer in layers:
            if hasattr(layer, "scale"):
                layer.scale.copy_(sines(layer.scale.shape, next(ranks), norm=True))
                continue
            layer.bias.copy_(sines(layer.bias.shape, next(ranks)))
            if hasattr(layer, "kernel"):
                layer.kernel.copy_(sines(layer.kernel.shape, next(ranks)))
            elif isinstance(layer, nn.Conv2d):
                outputs, inputs, height, width = layer.weight.shape
                layer.weight.copy_(sines((height, width, inputs, outputs), next(ranks)).permute(3, 2, 0, 1))
            else:
                layer.weight.copy_(sines(layer.weight.T.shape, next(ranks)).T)


class Recorder(Optimizer):
    """Keeps every loss that it is given, and trains nothing."""

    def __init__(self) -> None:
        self.losses: list[dict[str, Tensor]] = []
        self.when: list[bool] = []
        self.fresh: list[bool] = []

    def step(self, losses: Mapping[str, Tensor], when: Tensor | None = None, *, fresh: bool = True) -> Metrics:
        self.losses.append(dict(losses))
        self.when.append(True if when is None else bool(when))
        self.fresh.append(fresh)
        return {}


def lookup(table: Tensor) -> MLP:
    """A network that gives row t for the one-hot input t."""
    network = MLP(len(table), units=1, layers=0, outputs=table.shape[1])
    network[0].weight.data = table.T.contiguous()
    return network


PLAIN = BehaviorOptions()


def make_level(
    options: BehaviorOptions = PLAIN,
    inputs: int = 4,
    action: ActionSpec = CHOICE,
    *,
    streams: Mapping[str, Stream] = TASK,
    units: int = 8,
    bins: int = 255,
) -> ActorCritic:
    """A level of a behavior, by itself."""
    distribution = ActionDistribution.of(action, options.unimix)
    return ActorCritic("policy", options, inputs, distribution, streams, units=units, bins=bins)


def flat_dream(
    latent: Latent, action: Tensor, policy: Tensor, logprob: Tensor, continues: Tensor, reward: Tensor
) -> Dream:
    """A dream without a manager."""
    none = torch.zeros(len(action), 2, 0)
    return Dream(
        *(latent, action, policy, logprob, continues, {"extrinsic": reward}),
        goal=Goal(none, none),
        goal_policy=none[:, :1],
        goal_logprob=torch.zeros(len(action), 1),
        own=torch.ones(len(action), dtype=torch.bool),
    )


def flat_view(level: ActorCritic, dream: Dream) -> Rollout:
    """What a level without a manager experienced."""
    return views.worker(dream, level.streams, level.discount)


def make_behavior(
    hierarchy: HierarchyOptions = PLANNED, options: BehaviorOptions = PLAIN, *, features: int, deter: int
) -> Hierarchy:
    """A manager over a worker with three actions."""
    torch.manual_seed(1)
    return build(
        options,
        hierarchy,
        CHOICE,
        default_streams(options, hierarchy),
        features=features,
        deter=deter,
        units=16,
        bins=63,
    )


def planned_dream(
    deter: Tensor, code: Tensor, reward: Mapping[str, Tensor], continues: Tensor | None = None, target: Any = None
) -> Dream:
    """A dream through ``deter`` [N, H+1, D] with goals [N, M+1, G], in which nothing is known of any decision."""
    (count, points, _), goals = deter.shape, code.shape[1] - 1
    latent = Latent(deter, *(torch.zeros(count, points, 0, 0) for _ in range(2)))
    idle, alive = torch.zeros(count, points - 1, 3), torch.ones(count, points) if continues is None else continues
    return replace(
        flat_dream(latent, idle, idle, idle[..., 0], alive, idle[..., 0]),
        reward=dict(reward),
        goal=Goal(code, code if target is None else target),
        goal_policy=torch.zeros_like(code[:, :-1]),
        goal_logprob=torch.zeros(count, goals),
    )


def no_replay(inputs: int) -> ReplayValue:
    """One replayed step of weight zero."""
    return ReplayValue(torch.zeros(1, 1, inputs), torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, 1))


def record(level: ActorCritic, rollout: Rollout, targets: Targets, replay: ReplayValue | None, seed: int = 0):
    """The losses that `improve` hands to the two optimizers, and its metrics."""
    optimizers = {"actor": Recorder(), "critic": Recorder()}
    metrics = improve(level, rollout, targets, replay, optimizers, torch.Generator().manual_seed(seed))
    return optimizers["actor"], optimizers["critic"], metrics


def close(actual: Tensor, expected: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Asserts equality up to float32 rounding."""
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual.detach(), expected, rtol=rtol, atol=atol)
