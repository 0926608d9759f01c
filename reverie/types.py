"""The nouns that cross borders between layers, and the time-lines that hold them together.

A *step* is one decision of the agent in one environment. Where actions repeat (`env.repeat`), it is several *frames*.

Shape letters, used in every annotation of the package::

    E environments   B sequences   T replay steps   N dreams   H imagined steps   R rollouts   L rollout edges
    A action width   D deterministic state   S x C stochastic groups x classes   F = D + S*C features   X tokens
    K steps per goal   M = H/K goals per dream   G goal code   W goal target   Q reward streams   V seen features

Batch first, time second, everywhere. A path of H transitions has H+1 *points* (latent, continue
probability) and H *edges* (action, log-probability, reward); no other length exists::

    real      o0 --a0--> o1 --a1--> o2         row t = (o_t, r_t, flags_t, a_t); r_t arrived with o_t
    dream     s0 --a0--> s1 --a1--> ... --> sH
    manager   s0 ====== g0 ======> sK ====== g1 ======> s2K     one edge per goal
    worker    s0 --> ... --> sK  |  sK --> ... --> s2K          one rollout per goal
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

Losses = dict[str, Float[Tensor, "B T"]]
"""One loss per name, one number per replayed step."""

Metrics = dict[str, Tensor]
"""Scalars that stay on the device until a logger writes them."""

Array = np.ndarray
SLOWEST, FASTEST = 1e-3, 1e9
"""Samples per second of a sound."""


def cpu_copy(tensor: Tensor) -> Tensor:
    """A copy for a checkpoint, on the CPU: who loads it may have no other device."""
    return tensor.detach().to("cpu", copy=True)


@dataclass(frozen=True)
class ObservationSpec:
    """One observation key as the environment draws it (without batch axes)."""

    shape: tuple[int, ...]
    dtype: str
    """A numpy dtype name: ``bool``, ``uint8``, ``uint16``, ``int16``, ``int64``, ``float16`` or ``float32``."""
    classes: int = 0
    """For integer keys: values lie in ``0..classes-1``. Zero for numbers."""
    kind: str = ""
    """The modality that it is of; empty: whichever claims it."""
    rate: float = 0.0
    """Samples per second (Hz) of a sound; zero where that is unknown, and for all else."""
    optional: bool = False
    """Whether it may be missing. Then it is silent or zeros, and a bool beside it, `presence_key`, is false."""
    tokenizer: str = field(default="", repr=False)
    """What turns a text into the classes of its tokens, as the JSON of the package `tokenizers`; empty: it is bytes."""

    @property
    def silence(self) -> int | None:
        """The sample of a sound that is not heard; None for what is none."""
        return {"uint8": 128, "uint16": 32768}.get(self.dtype, 0) if self.rate or self.kind == "audio" else None

    def __str__(self) -> str:
        """All of it in words. What is as usual is left out, so that words of before still say the same."""
        words = [f"{self.dtype}{list(self.shape)}" + f" of {self.classes} classes" * bool(self.classes)]
        words += [self.kind] * bool(self.kind) + [f"{self.rate:g} Hz"] * bool(self.rate)
        words += [f"tokenizer {blake2b(self.tokenizer.encode(), digest_size=4).hexdigest()}"] * bool(self.tokenizer)
        return ", ".join(words + ["optional"] * self.optional)


def presence_key(key: str) -> str:
    """The observation that says whether the optional one of this name is there."""
    return f"{key}/present"


@dataclass(frozen=True)
class ActionPart:
    """One component of an action: a choice among ``size`` classes, or ``size`` numbers in [-1, 1]."""

    name: str
    size: int
    discrete: bool


ActionSpec = tuple[ActionPart, ...]
"""All parts, in the order in which the flat action vector concatenates them (one-hot or numbers)."""


def action_width(action: ActionSpec) -> int:
    """The length A of the flat action vector."""
    return sum(part.size for part in action)


@dataclass(frozen=True)
class Step:
    """What E environments show at one moment; reward and flags arrive *with* the observation they led to."""

    obs: dict[str, Shaped[Array, "E ..."]]
    reward: Float[Array, "E"]
    first: Bool[Array, "E"]
    """The observation begins an episode; its reward is 0 and the action that was sent is ignored."""
    last: Bool[Array, "E"]
    """The observation ends an episode, for whatever reason."""
    terminal: Bool[Array, "E"]
    """The episode ended because the task did (never set by a time limit)."""
    info: dict[str, Float[Array, "E 2"]] = field(default_factory=dict)
    """By name, a number of the episode that ended, and 1 where there is one, else 0."""

    def tensors(self, device: torch.device) -> dict[str, Tensor]:
        """The observations as tensors [E, ...] of their own dtype."""
        return {key: torch.as_tensor(value).to(device) for key, value in self.obs.items()}


@dataclass(frozen=True)
class Latent:
    """A state of the world model."""

    deter: Float[Tensor, "*batch D"]
    stoch: Float[Tensor, "*batch S C"]
    """One-hot per group; all zeros before the first observation."""
    logits: Float[Tensor, "*batch S C"]
    """What ``stoch`` was drawn from, before uniform mixing."""

    @property
    def fields(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.deter, self.stoch, self.logits

    @property
    def features(self) -> Float[Tensor, "*batch F"]:
        """What all heads see; made at the first use."""
        made = vars(self)  # until Python 3.12 `cached_property` takes a lock, at which torch's compiler gives up
        if "features" not in made:
            made["features"] = torch.cat([self.deter, self.stoch.flatten(-2)], -1)
        return made["features"]

    @classmethod
    def of(cls, features: Float[Tensor, "*batch F"], logits: Float[Tensor, "*batch S C"]) -> Latent:
        """The state that is held in memory once: ``deter`` and ``stoch`` are parts of ``features``."""
        groups = logits.shape[-2:]
        deter, stoch = features.split([features.shape[-1] - groups.numel(), groups.numel()], -1)
        latent = cls(deter, stoch.unflatten(-1, groups), logits)
        vars(latent)["features"] = features
        return latent

    def once(self) -> Latent:
        """The same state, held in memory once."""
        return Latent.of(self.features, self.logits)

    def detach(self) -> Latent:
        return Latent(*(field.detach() for field in self.fields))

    def since(self, t: int) -> Latent:
        """The states [B, T-t, ...] from step ``t`` of [B, T, ...] on, of which all is part of this one."""
        return Latent.of(self.features[:, t:], self.logits[:, t:])

    def at(self, t: int) -> Latent:
        """The states [B, ...] at step ``t`` of [B, T, ...]."""
        return Latent(*(field[:, t] for field in self.fields))

    def rows(self) -> Iterator[Latent]:
        """Each row [1, ...] by itself."""
        return (Latent(*fields) for fields in zip(*(field.split(1) for field in self.fields), strict=True))


def stack(latents: Sequence[Latent]) -> Latent:
    """States [B, ...] of successive steps as [B, T, ...]."""
    return Latent(*(torch.stack(field, 1) for field in zip(*(latent.fields for latent in latents), strict=True)))


def join(latents: Sequence[Latent]) -> Latent:
    """Successive stretches [B, T_i, ...] as one [B, sum of T_i, ...]; what is made of several is in memory once."""
    if len(latents) == 1:
        return latents[0]
    return Latent.of(*(torch.cat([getattr(latent, name) for latent in latents], 1) for name in ("features", "logits")))


@dataclass(frozen=True)
class Goal:
    """What a manager wants; without one, a vector of width zero."""

    code: Float[Tensor, "*batch G"]
    """What the manager chose: one-hot groups in a line."""
    target: Float[Tensor, "*batch W"]
    """What the worker is told."""

    @property
    def fields(self) -> tuple[Tensor, Tensor]:
        return self.code, self.target

    def where(self, mask: Bool[Tensor, "*batch"], other: Goal) -> Goal:
        """This goal where ``mask`` holds, the other one elsewhere."""
        fields = zip(self.fields, other.fields, strict=True)
        return Goal(*(torch.where(mask[..., None], mine, theirs) for mine, theirs in fields))


@dataclass(frozen=True)
class Carry:
    """All that an agent remembers between two steps of the environments."""

    latent: Latent
    action: Float[Tensor, "E A"]
    goal: Goal
    age: Int[Tensor, "E"]
    """Steps since the goal was chosen."""


@dataclass(frozen=True)
class Batch:
    """Replayed sequences. Row t holds what arrived at t and the action chosen after seeing it."""

    obs: dict[str, Shaped[Tensor, "B T ..."]]
    action: Float[Tensor, "B T A"]
    reward: Float[Tensor, "B T"]
    first: Bool[Tensor, "B T"]
    last: Bool[Tensor, "B T"]
    terminal: Bool[Tensor, "B T"]
    slot: Int[Tensor, "B T"]
    """Where replay keeps each row; hand it back to rewrite the stored latents."""
    context_action: Float[Tensor, "B A"]
    """The action of the row before the first one."""
    context_latent: dict[str, Shaped[Tensor, "B ..."]]
    """The stored latent of the row before the first one, as `MultimodalWorldModel.pack` made it."""

    @property
    def previous_action(self) -> Float[Tensor, "B T A"]:
        """The action that led to each row. This is the only place that shifts actions."""
        return torch.cat([self.context_action[:, None], self.action[:, :-1]], 1)

    def to(self, device: torch.device) -> Batch:
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def rows(self) -> Iterator[Batch]:
        """Each sequence [1, T, ...] by itself."""
        return (self._each(lambda tensor, b=b: tensor[b : b + 1]) for b in range(len(self.reward)))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        def changed(item: Any) -> Any:
            return {key: changed(value) for key, value in item.items()} if isinstance(item, dict) else change(item)

        return Batch(**{name: changed(value) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Explained:
    """What the world model made of a batch, without gradient: what motives learn from."""

    latent: Latent
    tokens: Float[Tensor, "B T X"]
    """What was observed, encoded, and nothing of what preceded it."""
    walk: Callable[[Latent, Tensor, Tensor], Latent]
    """States [N, ...], actions [N, H, A] and uniform numbers [H, N, S] give the points [N, H+1, ...] from there on."""
    continues: Callable[[Tensor], Tensor]
    """How likely an episode does, by features [..., F]."""
    pursue: Callable[[Latent, Tensor, Tensor], Latent]
    """The same with codes of goals [N, G], for which the worker acts on the way; it takes more numbers, [K, N, Z+S]."""


@dataclass(frozen=True)
class Dream:
    """A walk that the behavior took inside the world model, made without gradient."""

    latent: Latent
    """H+1 points: [N, H+1, ...]."""
    action: Float[Tensor, "N H A"]
    policy: Float[Tensor, "N H P"]
    """The parameters of the distribution that each action was drawn from."""
    logprob: Float[Tensor, "N H"]
    continues: Float[Tensor, "N H+1"]
    """The continue head's output at each point, the start included."""
    reward: dict[str, Float[Tensor, "N H"]]
    """By stream, the task's and those of motives: entry t rewards the edge t -> t+1."""
    goal: Goal
    """In force from points 0, K, 2K, ... on, [N, M+1, ...]; the last one is never acted upon."""
    goal_policy: Float[Tensor, "N M C"]
    """The parameters of the distribution that each goal was drawn from."""
    goal_logprob: Float[Tensor, "N M"]
    own: Bool[Tensor, "N"]
    """Whether the manager chose the goals; false where they were given to it."""

    @property
    def target(self) -> Float[Tensor, "N points W"]:
        """The goal's target that is in force at each point."""
        decisions, horizon = self.goal.target.shape[1] - 1, self.action.shape[1]
        held = self.goal.target[:, :-1].repeat_interleave(horizon // decisions, 1)
        return torch.cat([held, self.goal.target[:, -1:]], 1)


@dataclass(frozen=True)
class Rollout:
    """What one level of the behavior experienced. PPO sees nothing else."""

    action: Float[Tensor, "R L A"]
    inputs: Float[Tensor, "R L+1 I"]
    policy: Float[Tensor, "R L P"]
    logprob: Float[Tensor, "R L"]
    reward: Float[Tensor, "R L Q"]
    discount: Float[Tensor, "R L Q"]
    """The stream's discount times the probability that the point which the edge leads to goes on."""
    weight: Float[Tensor, "R L"]
    """How likely the edge is to be reached at all."""
    own: Bool[Tensor, "R"] | None = None
    """Whether the level chose the actions itself, if not everywhere: what was given to it sets no scale."""
    after: Float[Tensor, "N I"] | None = None
    """Inputs at the end of each dream, of which R/N rollouts are successive pieces, for streams that do not end with a
    goal. Left out where they are the last of ``inputs``."""
    sure_discount: Sequence[float] = ()
    """By stream, the discount of an edge after which it is sure that the episode goes on."""
    ended: Float[Tensor, "R L Q"] | None = None
    """The chance of an end within the edge, discounted by the time until then; left out where no stream outlives it."""

    @property
    def counted(self) -> Bool[Tensor, "R L"]:
        """``own``, for every edge."""
        own = self.weight.new_ones(len(self.weight), dtype=torch.bool) if self.own is None else self.own
        return own[:, None].expand_as(self.weight)
