"""A manager that sets goals and a worker that reaches them, both learned in one dream.

Every K steps the manager sees where it is and chooses a goal (`goals`); the worker acts with the goal before its eyes.
Each looks at the same dream in its own time (`views`) and improves by the same PPO.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from reverie.behavior import views
from reverie.behavior.actor_critic import ActorCritic
from reverie.behavior.behavior import Behavior
from reverie.behavior.goals import GOAL_REWARDS, AutoencoderGoals, Decision, GoalSpace, SkillGoals, perplexity
from reverie.behavior.motive import Motive
from reverie.behavior.streams import Stream
from reverie.errors import ConfigError
from reverie.functional import masked_mean
from reverie.optim import PolicyOptimizerOptions
from reverie.options import OTHERS, Options
from reverie.types import Dream, Goal, Latent, Metrics, Rollout


class HierarchyOptions(Options):
    """The manager, its goals, and what the worker is paid for. What both levels share is in `behavior`."""

    switches = {"enabled": OTHERS, "goals": {"num_options"}}

    enabled: bool = False
    """Without it one level acts alone."""
    period: int = Field(default=8, ge=1, le=10_000)
    """Steps for which a goal holds; must divide `agent.horizon`."""
    preset: Literal["hybrid", "goals_only", "director"] = "hybrid"
    """A `hybrid` worker is paid for the task as well, the others for their goals alone; `director` counts the manager's
    time as published (Hafner et al. 2022)."""
    goals: str = "autoencoder"
    """Compressed states (`autoencoder`), numbered skills (`skill`), or another one of `GOAL_SPACES`."""
    goal_nats: float = Field(default=8.0, gt=0, lt=16.6)
    """What an autoencoder's code tells of a state, of 16.6 nats: with more, paintings are sharper; with less, more
    codes paint states that exist."""
    num_options: int = Field(default=16, ge=2, le=1024)
    """Number of skills; autoencoders have their own code."""
    goal_reward: str = "max_cosine"
    """How a reached state is compared with the one that an autoencoder's code paints: `max_cosine`, `cosine`,
    `distance`, or another one of `goals.GOAL_REWARDS`."""
    goal_weight: float = Field(default=1.0, ge=0)
    """Weight of reaching goals for the worker."""
    goal_horizon: float = Field(default=100, gt=1)
    """Discount of reaching goals, as an effective number of steps."""
    novelty_weight: float = Field(default=0.1, ge=0)
    """Weight of states that no goal describes well, for the manager."""
    novelty_horizon: float = Field(default=100, gt=1)
    """Discount of novelty."""
    goal_mix: float = Field(default=0.0, ge=0, le=1)
    """Share of dreams whose goals are other replayed states instead of the manager's choice."""
    goal_optimizer: PolicyOptimizerOptions = PolicyOptimizerOptions()
    """How goals are trained."""
    goal_warmup: int = Field(default=500, ge=0)
    """Updates of the goals before manager and worker begin to learn."""
    frozen: bool = False
    """The manager's policy never learns: its goals stay random. A control experiment."""
    entropy: float = Field(default=3e-3, gt=0)
    """Weight of the manager's entropy at the start."""
    entropy_target: float = Field(default=0.5, gt=0, lt=1)
    """The weight of the manager's entropy is adapted until it is at this share of its range."""
    minibatches: int = Field(default=2, ge=1)
    """Minibatches per pass of the manager."""
    target_kl: float = Field(default=0.16, gt=0)
    """As `behavior.target_kl`, for the manager's whole code: an autoencoder's has eight groups, a skill is one."""

    @model_validator(mode="after")
    def _has_goals_and_pays_for_them(self) -> HierarchyOptions:
        for name, known in (("goals", GOAL_SPACES), ("goal_reward", GOAL_REWARDS)):
            if (chosen := getattr(self, name)) not in known:
                raise ConfigError(f"hierarchy.{name} = {chosen!r} is unknown; choose among {', '.join(known)}")
        if not (self.goal_weight or PRESETS[self.preset].task):
            raise ConfigError(
                f"hierarchy.goal_weight = 0: with hierarchy.preset = {self.preset} a worker is paid for nothing else; "
                f"raise it"
            )
        return self


@dataclass(frozen=True)
class Preset:
    """Who is paid for what, and how the manager counts time."""

    task: bool
    """Whether the worker is paid for the task as well."""
    manager_view: Callable[[Dream, Mapping[str, Stream], float], Rollout]
    """What the manager sees of a dream: one of `views`."""
    replay_value: bool
    """Whether the manager's critic learns from replayed steps, for which it has to count returns per step."""


PRESETS = {
    "hybrid": Preset(task=True, manager_view=views.manager, replay_value=True),
    "goals_only": Preset(task=False, manager_view=views.manager, replay_value=True),
    "director": Preset(task=False, manager_view=views.director, replay_value=False),
}


class Hierarchy(Behavior):
    """A manager over a worker."""

    goals: GoalSpace

    def __init__(self, options: HierarchyOptions, manager: ActorCritic, worker: ActorCritic, goals: GoalSpace):
        super().__init__()
        self.worker, self.goals = worker, goals
        self.options, self.manager, self.noise = options, manager, goals.distribution.noise
        self.shuffled = False

    @property
    def levels(self) -> list[ActorCritic]:
        return [self.manager, self.worker]

    @property
    def motives(self) -> Mapping[str, Motive]:
        return {"goals": self.goals}

    def ready(self) -> Bool[Tensor, ""]:
        """After the goals' warm-up."""
        return self.goals.updates >= self.options.goal_warmup

    def frozen(self, level: ActorCritic) -> bool:
        return self.options.frozen and level is self.manager

    def shuffle(self) -> None:
        self.shuffled = True

    @property
    def decision(self) -> Decision:
        return Decision(self.goals.distribution, self.options.period, self.worker.distribution.noise)

    def decode(self, code: Float[Tensor, "*batch G"]) -> Goal:
        return self.goals.decode(code)

    def decisions(self, horizon: int) -> int:
        return horizon // self.options.period

    @torch.no_grad()
    def assign(self, start: Latent, generator: torch.Generator) -> tuple[Bool[Tensor, "N"], Goal]:
        count, device = len(start.deter), start.deter.device
        if not self.options.goal_mix:
            return torch.ones(count, dtype=torch.bool, device=device), self.initial_goal(start)
        uniform = torch.rand(count, self.noise + 1, generator=generator, device=device)
        return uniform[:, 0] >= self.options.goal_mix, self.goals.propose(others(start.deter), uniform[:, 1:])

    def initial_goal(self, latent: Latent) -> Goal:
        empty, shape = latent.deter.new_zeros, latent.deter.shape[:-1]
        return Goal(empty(*shape, self.goals.distribution.size), empty(*shape, self.goals.target))

    @torch.no_grad()
    def decide(self, latent: Latent, uniform: Float[Tensor, "*batch Z"]) -> tuple[Goal, Float[Tensor, "*batch P"]]:
        goal_policy = self.manager.policy(latent.features)
        return self.decode(self.goals.distribution.sample(goal_policy, uniform)), goal_policy

    def goal_logprob(
        self, goal_policy: Float[Tensor, "*batch P"], code: Float[Tensor, "*batch G"]
    ) -> Float[Tensor, "*batch"]:
        return self.manager.distribution.logprob(goal_policy, code)

    @torch.no_grad()
    def next_goal(
        self, latent: Latent, goal: Goal, age: Int[Tensor, "E"], first: Bool[Tensor, "E"], uniform: Float[Tensor, "E Z"]
    ) -> tuple[Goal, Int[Tensor, "E"]]:
        """A new goal where an episode begins or the old one has held for its time."""
        age = torch.where(first, 0, age)
        due = age % self.options.period == 0
        if due.any():
            new = self.decide(latent, uniform)[0]
            if self.shuffled:
                if len(age) == 1:
                    raise ConfigError("one environment has no other's goals to be given; train with env.envs=2 or more")
                new = Goal(*(field.roll(1, 0) for field in new.fields))
            goal = new.where(due, goal)
        return goal, torch.where(due, 0, age) + 1

    @torch.no_grad()
    def goal_outcomes(
        self,
        goal: Goal,
        age: Int[Tensor, "E"],
        latent: Latent,
        first: Bool[Tensor, "E"],
        start: Float[Tensor, "E D"],
    ) -> Float[Tensor, "finished 3"]:
        finished = ~first & (age > 0) & (age % self.options.period == 0)
        foreign = goal.target.roll(1, 0) if len(age) > 1 else torch.full_like(goal.target, torch.nan)
        pairs = (goal.target, latent.deter), (foreign, latent.deter), (goal.target, start)
        return torch.stack([self.goals.fit(target, deter) for target, deter in pairs], -1)[finished]

    def views(self, dream: Dream) -> list[Rollout]:
        # The continue head may say more than the discount that it was trained with. Published, that counts; here, where
        # every stream has a discount of its own, only a probability may.
        dream = replace(dream, continues=dream.continues.clamp(max=1.0))
        discount = self.manager.discount
        planned = PRESETS[self.options.preset].manager_view(dream, self.manager.streams, discount)
        return [planned, views.worker(dream, self.worker.streams, discount)]

    @torch.no_grad()
    def goal_metrics(self, dream: Dream) -> Metrics:
        """Fit at the start and at the end of each goal, and how often the end fits well: for own and foreign goals.

        Goals that were given do not count. Beside it, how many classes of each group the manager uses, and how far its
        goals are from the ones before.
        """
        period, target = self.options.period, dream.goal.target[:, :-1]
        start, end = dream.latent.deter[:, :-1:period], dream.latent.deter[:, period::period]
        before, fit, foreign = (
            self.goals.fit(wanted, state) for wanted, state in ((target, start), (target, end), (others(target), end))
        )
        switch = dream.goal.target.diff(dim=1).norm(dim=-1)
        usage = self.goals.distribution.split(dream.goal_policy).softmax(-1).flatten(0, -3).mean(0)
        seen = {
            "manager/switch": switch,
            "goals/fit_at_start": before,
            "goals/fit_at_end": fit,
            "goals/gain": fit - before,
            "goals/reach": (fit >= GOAL_THRESHOLD).float(),
            "goals/reach_shuffled": (foreign >= GOAL_THRESHOLD).float(),
        }
        means = masked_mean(torch.stack([values.mean(1) for values in seen.values()], -1), dream.own)
        return {"manager/perplexity": perplexity(usage)} | dict(zip(seen, means.unbind(), strict=True))

    def joint_kl(self, metrics: Metrics) -> Metrics:
        """The KL of the joint policy over the steps of one goal, as measured before each minibatch's step."""
        return {"manager/kl_segment": metrics["manager/kl"] + self.options.period * metrics["worker/kl"]}


def others(dreams: Tensor) -> Tensor:
    """The rows [N, ...] of dreams that begin elsewhere: neighbours begin one step apart in one sequence."""
    return dreams.roll(len(dreams) // 2, 0)


GOAL_THRESHOLD = 0.7
"""A goal counts as reached where the fit is at least this."""


def autoencoder_goals(options: HierarchyOptions, deter: int, units: int) -> GoalSpace:
    """States, compressed and painted."""
    return AutoencoderGoals(deter, units, options.goal_reward, options.goal_nats, options.goal_optimizer)


def skill_goals(options: HierarchyOptions, deter: int, units: int) -> GoalSpace:
    """Numbered skills."""
    return SkillGoals(deter, units, options.num_options, options.goal_optimizer)


GOAL_SPACES: dict[str, Callable[[HierarchyOptions, int, int], GoalSpace]] = {
    "autoencoder": autoencoder_goals,
    "skill": skill_goals,
}
