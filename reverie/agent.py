"""The story: `Agent.act` plays, `Agent.learn` explains what was played, dreams from it, and improves.

Read `Agent.learn` from top to bottom: it is the algorithm.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from reverie import compilation
from reverie.behavior.actor_critic import BehaviorOptions, ReplayValue, Targets
from reverie.behavior.build import build, default_streams
from reverie.behavior.hierarchy import HierarchyOptions
from reverie.behavior.intrinsic import IntrinsicOptions, build_intrinsic
from reverie.behavior.motive import Motive
from reverie.behavior.ppo import improve
from reverie.compatibility import check_sections, compare, describe, shapes
from reverie.imagine import imagine, pursue
from reverie.learned_rates import FIXED, LearnedRates, MetaOptions, RateOptions
from reverie.nets.layers import output_rows
from reverie.optim import Optimizer, OptimizerOptions, PolicyOptimizerOptions
from reverie.options import Options
from reverie.rate_free import optimizer_class
from reverie.types import (
    ActionSpec,
    Batch,
    Carry,
    Dream,
    Explained,
    Latent,
    Metrics,
    ObservationSpec,
    Step,
    action_width,
    cpu_copy,
)
from reverie.world.model import MultimodalWorldModel
from reverie.world.options import WorldOptions

log = logging.getLogger(__name__)


class AgentOptions(Options):
    """How long and from where the agent dreams, and how its groups of parameters are trained."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Products inside networks while learning; acting, parameters, norms, losses and returns are always single."""
    compile: Literal["auto", "on", "graphs", "off"] = "auto"
    """Fuse what an update computes with torch's compiler; `auto` does in long runs, but not beside native kernels.
    `graphs` also launches what it made as CUDA graphs, on a GPU."""

    horizon: int = Field(default=15, ge=1, le=10_000)
    """Imagined steps of every dream."""
    starts: int = Field(default=0, ge=0)
    """Dreams begin at this many last steps of each sequence; 0 means at all of them."""
    world_optimizer: OptimizerOptions = OptimizerOptions()
    """Encoders, recurrent model, decoders, reward and continue heads."""
    actor_optimizer: PolicyOptimizerOptions = PolicyOptimizerOptions()
    """The policy."""
    critic_optimizer: PolicyOptimizerOptions = PolicyOptimizerOptions()
    """The critic."""


NO_INTRINSIC = IntrinsicOptions()
"""No reward but the task's and those of goals."""

MOTIVE_SEED = 1 << 40
"""Where the seeds of motives begin."""


class Agent(nn.Module):
    """A world model and a behavior that learns inside it. ``observation`` and ``action`` are the environment's."""

    def __init__(
        self,
        options: AgentOptions,
        world: WorldOptions,
        behavior: BehaviorOptions,
        hierarchy: HierarchyOptions,
        spaces: tuple[Mapping[str, ObservationSpec], ActionSpec],
        device: torch.device,
        seed: int = 0,
        meta: MetaOptions = FIXED,
        intrinsic: IntrinsicOptions = NO_INTRINSIC,
    ):
        super().__init__()
        self.options, self.device = options, device
        self.compiles = compilation.repays(options.compile, device)  # whoever knows the run's length may decide anew
        observation, action = spaces
        self.spaces, self.action_width = describe(observation, action), action_width(action)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.world = MultimodalWorldModel(observation, action, world)
            sizes = self.world.sizes
            widths = {name: getattr(sizes, name) for name in ("features", "deter", "units", "bins")}
            streams = default_streams(behavior, hierarchy, intrinsic.streams)
            self.behavior = build(behavior, hierarchy, action, streams, **widths)
            sees = {name: widths[name] for name in ("features", "units", "bins")}
            own = build_intrinsic(intrinsic, action, self.behavior.decision, tokens=self.world.tokens, **sees)
        self.own_motives = nn.ModuleDict(own)
        self.motives: dict[str, Motive] = {**self.behavior.motives, **own}
        self.to(device)
        self.generators = {
            "act": torch.Generator(device).manual_seed(2 * seed),
            "learn": torch.Generator(device).manual_seed(2 * seed + 1),
        }
        # Whatever a motive of its own draws, all else draws the same.
        self.generators |= {name: torch.Generator(device).manual_seed(MOTIVE_SEED + seed) for name in own}
        groups = list(self._optimizers(meta))
        self.optimizers = {optimizer.name: optimizer for optimizer, _ in groups}
        self.learned_rates = LearnedRates(self.optimizers, {optimizer.name: rates for optimizer, rates in groups}, meta)

    def _optimizers(self, meta: MetaOptions) -> Iterator[tuple[Optimizer, RateOptions]]:
        """World, an actor and a critic of each level, and motives. Replayed steps train the first level's critic."""
        options, levels = self.options, self.behavior.levels
        replay_value = {"replay_value": levels[0].options.replay_value_scale} if levels[0].learns_from_replay else {}
        groups: list[tuple[str, nn.Module, OptimizerOptions, RateOptions, dict[str, float]]]
        groups = [("world", self.world, options.world_optimizer, meta.world, self.world.scales | replay_value)]
        for level in levels:
            scales = {"value": level.options.value_scale} | (replay_value if level is levels[0] else {})
            groups.append((f"{level.group}actor", level.actor, options.actor_optimizer, meta.actor, {"policy": 1.0}))
            groups.append((f"{level.group}critic", level.critic, options.critic_optimizer, meta.critic, scales))
        groups += [(name, motive, motive.optimizer, meta.motive, {name: 1.0}) for name, motive in self.motives.items()]
        half = (options.precision, self.device.type) in LOSS_SCALED
        for name, network, choices, rates, scales in groups:
            rows = output_rows(network)
            train = optimizer_class(choices.kind)
            yield train(name, network.parameters(), choices, scales, rows=rows, half=half), rates

    # --- playing ---

    def initial(self, envs: int) -> Carry:
        """What the agent remembers before the first step: nothing."""
        latent = self.world.initial(envs)
        action, age = latent.deter.new_zeros(envs, self.action_width), latent.deter.new_zeros(envs, dtype=torch.long)
        return Carry(latent, action, self.behavior.initial_goal(latent), age)

    def twin(self) -> Agent:
        """An agent with a copy of the weights and the same random numbers: it can act while this one learns."""
        shared = {id(self.generators): self.generators}
        return copy.deepcopy(self, {id(self.optimizers): {}, id(self.learned_rates): None, **shared})

    @torch.no_grad()
    def act(
        self, step: Step, carry: Carry, generator: torch.Generator | None = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Carry]:
        """Sees a step, and draws an action [E, A] from the policy. As published, evaluation samples too.

        ``generator`` defaults to the agent's own; evaluation brings another, so that it leaves no trace.
        With ``deterministic``, the action is the policy's mode; latents and goals are drawn all the same.
        """
        generator = generator or self.generators["act"]
        worker, envs = self.behavior.worker, len(step.first)
        widths = [self.world.sizes.stoch, worker.distribution.noise, self.behavior.noise]
        noise = torch.rand(envs, sum(widths), generator=generator, device=self.device)
        latent_noise, action_noise, goal_noise = noise.split(widths, -1)
        obs = {key: value[:, None] for key, value in step.tensors(self.device).items()}
        first = torch.as_tensor(step.first, device=self.device)
        latent = self.world.rssm.observe(
            self.world.encode(obs),
            carry.action[:, None],
            first[:, None],
            carry.latent.deter,
            carry.latent.stoch,
            latent_noise[:, None],
        ).at(0)
        goal, age = self.behavior.next_goal(latent, carry.goal, carry.age, first, goal_noise)
        policy = worker.policy(torch.cat([latent.features, goal.target], -1))
        choices = worker.distribution
        action = choices.mode(policy) if deterministic else choices.sample(policy, action_noise)
        return action.cpu().numpy(), Carry(latent, action, goal, age)

    # --- learning ---

    def learn(self, batch: Batch) -> tuple[Metrics, dict[str, Tensor]]:
        """Explains the batch, dreams from it, and improves.

        Returns metrics, and the batch's fresh latents [B, T, ...] for replay to keep. The dream is made from the same
        parameters as the explanation, before any group steps.
        """
        batch, generator = batch.to(self.device), self.generators["learn"]
        latent_noise = torch.rand(*batch.reward.shape, self.world.noise, generator=generator, device=self.device)
        with compilation.learning(self.compiles, self.options.compile), self.precision():
            latent, tokens, losses = self.world.loss(batch, latent_noise)

            dream = imagine(self.world, self.behavior, self.starts(latent), self.options.horizon, generator)
            dream = replace(dream, reward=dream.reward | self.rewards(dream))
            rollouts, metrics = self.behavior.views(dream), self.behavior.goal_metrics(dream)
            levels = self.behavior.levels
            targets = [level.compute_targets(rollout) for level, rollout in zip(levels, rollouts, strict=True)]

            replay = self._replay_value(latent, batch, targets[0], dream)
            replay_loss = {} if replay is None else {"replay_value": levels[0].replay_value_loss(replay)}
            metrics |= self.optimizers["world"].step(losses | replay_loss)
            walks = self.world.imagine, self.world.continues, partial(pursue, self.world, self.behavior)
            explained = Explained(latent.detach(), tokens, *walks)
            metrics |= self._learn_motives(explained, batch, dream)
            ready = self.behavior.ready()
            for level, rollout, target in zip(levels, rollouts, targets, strict=True):
                optimizers = {kind: self.optimizers[f"{level.group}{kind}"] for kind in ("actor", "critic")}
                real, frozen = (replay if level is levels[0] else None), self.behavior.frozen(level)
                metrics |= improve(level, rollout, target, real, optimizers, generator, ready, frozen)
                level.update_slow_critic()
                metrics |= target.metrics | level.adapt_entropy(rollout, ready & (not frozen))
        metrics |= self.behavior.joint_kl(metrics) | self.world.metrics(losses)
        metrics |= self.learned_rates.learn()
        return self._named(metrics), self.world.pack(latent.detach())

    def rewards(self, dream: Dream) -> dict[str, Float[Tensor, "N H"]]:
        """The streams of all motives for which some level is paid."""
        paid = {name for level in self.behavior.levels for name in level.streams}
        rewards = [motive.rewards(dream, paid) for motive in self.motives.values()]
        return {name: reward for streams in rewards for name, reward in streams.items()}

    def _replay_value(self, latent: Latent, batch: Batch, targets: Targets, dream: Dream) -> ReplayValue | None:
        """What the first level's critic learns from replayed steps, if it does."""
        level = self.behavior.levels[0]
        if not level.learns_from_replay:
            return None
        # Where goals were given, what followed says nothing of the manager's own choice.
        returns, slow_value = (values[:, 0, level.task] for values in (targets.returns, targets.slow_value))
        return level.replay_value(latent.features, batch, torch.where(dream.own, returns, slow_value))

    def _learn_motives(self, explained: Explained, batch: Batch, dream: Dream) -> Metrics:
        """From replayed states and the dream, once."""
        metrics: Metrics = {}
        for name, motive in self.motives.items():
            generator = self.generators.get(name, self.generators["learn"])
            metrics |= motive.learn(self.optimizers[name], explained, batch, dream, generator)
        return metrics

    def _named(self, metrics: Metrics) -> Metrics:
        """The acting level's losses go by the name of the policy as well, whatever the behavior."""
        worker = self.behavior.worker.name
        known = {f"policy/{kind}": metrics[f"{worker}/{kind}"] for kind in KNOWN}
        return metrics | known | {short: metrics[name] for short, name in RATES.items() if name in metrics}

    def precision(self) -> torch.autocast:
        """Where products of networks are done in the chosen precision.

        Nothing half is kept inside: the optimizers change weights between two uses of them.
        """
        dtype = HALF.get(self.options.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None, cache_enabled=False)

    def starts(self, latent: Latent) -> Latent:
        """The latents [B, T, ...] from which dreams begin, as [N, ...]: the last ``starts`` of each sequence."""
        last = slice(-self.options.starts, None) if self.options.starts else slice(None)
        return Latent(*(field.detach()[:, last].flatten(0, 1) for field in latent.fields))

    # --- saving ---

    def checkpoint(self) -> dict[str, Any]:
        """Everything that learning changes, in plain containers."""
        return {
            "spaces": self.spaces,
            "model_state": {name: cpu_copy(value) for name, value in self.state_dict().items()},
            **{f"{name}_optimizer": optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "learned_rates": self.learned_rates.state_dict(),
            "generators": {name: generator.get_state() for name, generator in self.generators.items()},
            "motives": {name: motive.progress() for name, motive in self.motives.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over what `checkpoint` returned.

        Raises StoredDataError where a section is missing or of another shape; then nothing has changed.
        """
        optimizers = {f"{name}_optimizer": optimizer for name, optimizer in self.optimizers.items()}
        self._check_model(state)
        check_sections(state, {"generators", "motives", *optimizers})
        check_sections(state["generators"], self.generators)
        check_sections(state["motives"], self.motives)
        for section, optimizer in optimizers.items():
            optimizer.check(state[section])
        self.learned_rates.check(state.get("learned_rates", {}))
        self.load_state_dict(state["model_state"])
        for section, optimizer in optimizers.items():
            optimizer.load_state_dict(state[section])
        for name, motive in self.motives.items():
            motive.load_progress(state["motives"][name])
        self.learned_rates.load_state_dict(state.get("learned_rates", {}))
        for name, generator in self.generators.items():
            saved = state["generators"][name]
            if saved.shape == generator.get_state().shape:
                generator.set_state(saved)
            else:
                log.warning("resume is not bit-exact: random numbers '%s' of another kind of device begin anew", name)

    def restore_model(self, state: Mapping[str, Any]) -> None:
        """Takes over only weights and statistics, which is enough to play. Raises what `restore` does."""
        self._check_model(state)
        self.load_state_dict(state["model_state"])

    def _check_model(self, state: Mapping[str, Any]) -> None:
        check_sections(state, {"spaces", "model_state"})
        for kind, mine in self.spaces.items():
            compare(kind, state["spaces"].get(kind, {}), mine)
        compare("tensor", shapes(state["model_state"]), shapes(self.state_dict()))


HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Types of the products inside networks, where they are not single."""

LOSS_SCALED = {("fp16", "cuda")}
"""Precisions and devices whose small gradients would vanish without a loss scale."""

RATES = {"meta/lr": "meta/lr_world"}
"""The short name of the learned rate that matters most."""

KNOWN = ("policy_loss", "value_loss", "entropy")
"""What a policy reports under this name in every behavior."""
