"""The mixer: what the reward streams of a level come to together, one advantage."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from reverie.behavior.objective import CONFIGURED
from reverie.behavior.streams import TASK, Stream
from reverie.functional import masked_mean, masked_variance
from reverie.types import Metrics, Rollout


class Mixer(nn.Module):
    """Weighs the advantages of all streams, each over the spread of its recent returns (DreamerV3, eq. 7).

    A level that is ``normalised`` brings their sum to unit deviation on average (Hafner et al. 2022). Elsewhere a
    stream of weight zero changes nothing, and one of nearly zero nearly nothing.
    """

    return_low: Tensor
    return_high: Tensor
    started: Tensor
    advantage_std: Tensor
    updates: Tensor
    weights: Tensor
    floors: Tensor
    silent: Tensor
    task: Tensor
    tails: Tensor

    def __init__(self, streams: Mapping[str, Stream], rate: float, normalised: bool):
        """``rate`` is that at which spreads are averaged."""
        super().__init__()
        self.streams, self.rate, self.normalised = dict(streams), rate, normalised
        self.constant = all(stream.schedule.kind == "constant" for stream in streams.values())
        floors, zeros = torch.tensor([stream.floor for stream in streams.values()]), torch.zeros(len(streams))
        self.register_buffer("return_low", zeros)
        self.register_buffer("return_high", zeros.clone())
        self.register_buffer("started", (floors >= 1.0).float())
        self.register_buffer("advantage_std", torch.ones(()))
        self.register_buffer("updates", torch.zeros(()))
        constants = {
            "weights": torch.tensor([stream.weight for stream in streams.values()]),
            "floors": floors,
            "silent": torch.tensor([stream.silent for stream in streams.values()]),
            "task": torch.tensor([name == TASK for name in streams]),
            "tails": torch.tensor([0.05, 0.95]),
        }
        for name, constant in constants.items():
            self.register_buffer(name, constant, persistent=False)

    @property
    def weight(self) -> Float[Tensor, "Q"]:
        """How much each stream counts now."""
        return self.weigh(CONFIGURED)

    def weigh(self, numbers: Mapping[str, Tensor]) -> Float[Tensor, "Q"]:
        """The same with learned ``numbers``, called ``weight_<stream>``, in place of those that are configured."""
        weights = self.weights
        if any(f"weight_{name}" in numbers for name in self.streams):
            own = zip(self.streams, weights, strict=True)
            weights = torch.stack([numbers.get(f"weight_{name}", weight) for name, weight in own])
        if self.constant:
            return weights
        return weights * torch.stack([stream.schedule.share(self.updates) for stream in self.streams.values()])

    @property
    def scale(self) -> Float[Tensor, "Q"]:
        """The spread of each stream's returns."""
        return torch.maximum(self.return_high - self.return_low, self.floors)

    @property
    def spread(self) -> Tensor | float:
        """That of advantages, where the level is normalised."""
        return self.advantage_std.clamp(min=1e-8) if self.normalised else 1.0

    def advantage(self, missed: Float[Tensor, "R L Q"], numbers: Mapping[str, Tensor]) -> Float[Tensor, "R L"]:
        """What returns less values come to together by the scales of now."""
        return (missed / self.scale * self.weigh(numbers)).sum(-1) / self.spread

    @property
    def critic_weight(self) -> Float[Tensor, "Q"]:
        """How much the critic's errors in each stream count now: less than one where a stream hardly counts.

        All heads share their hidden layers, so that a stream which is to change nothing must not train them either.
        """
        return torch.where(self.task, 1.0, (self.weight / WHOLE_WEIGHT).clamp(max=1.0))

    @torch.no_grad()
    def mix(
        self,
        rollout: Rollout,
        returns: Float[Tensor, "R L Q"],
        value: Float[Tensor, "R L Q"],
        numbers: Mapping[str, Tensor] = CONFIGURED,
    ) -> tuple[Float[Tensor, "R L"], Metrics]:
        """The advantage, and statistics by name. Updates the scales, once per learning step.

        Rollouts that are not the level's own take no part in any scale. ``numbers`` are those of `weigh`.
        """
        counted, weight = rollout.counted, self.weigh(numbers)
        running = torch.where(self.started.any(), self.rate, 1.0)
        self._follow(rollout, returns)
        scale = self.scale
        parts = (returns - value) / scale
        weighted = parts * weight
        advantage = weighted.sum(-1)
        if self.normalised:
            seen = masked_variance(advantage.flatten(), counted.flatten()).sqrt()
            self.advantage_std.lerp_(torch.where(counted.any() & seen.isfinite(), seen, self.advantage_std), running)
            advantage = advantage / self.spread
        self.updates += 1
        metrics = self._statistics(rollout, returns, value, parts, advantage)
        for i, suffix in enumerate(self._suffixes()):
            metrics[f"return_scale{suffix}"] = scale[i]
        if len(self.streams) > 1:
            part = masked_mean(weighted.abs().flatten(0, 1), counted.flatten())
            share = part / part.sum().clamp(min=1e-8)
            for i, name in enumerate(self.streams):
                metrics |= {f"weight_{name}": weight[i], f"share_{name}": share[i]}
        return advantage, metrics

    def _follow(self, rollout: Rollout, returns: Float[Tensor, "R L Q"]) -> None:
        """Follows the spread of each stream's returns."""
        rate = torch.where(self.started > 0, self.rate, 1.0)
        counted: Bool[Tensor, "R L 1"] = rollout.counted[..., None]
        tails = torch.nanquantile(torch.where(counted, returns, torch.nan).flatten(0, 1), self.tails, 0)
        for average, seen in zip((self.return_low, self.return_high), tails, strict=True):
            average.lerp_(torch.where(seen.isnan(), average, seen), rate)
        pays = (counted & (rollout.reward != 0)).flatten(0, 1).any(0) | ~self.silent
        self.started.copy_(torch.where(counted.any() & pays, 1.0, self.started))

    def _statistics(
        self,
        rollout: Rollout,
        returns: Float[Tensor, "R L Q"],
        value: Float[Tensor, "R L Q"],
        parts: Float[Tensor, "R L Q"],
        advantage: Float[Tensor, "R L"],
    ) -> Metrics:
        """Of the edges that count. ``parts`` are the advantages of each stream, ``advantage`` that of all together."""
        counted, count = rollout.counted.flatten(), len(self.streams)
        table = torch.cat([returns, returns - value, rollout.reward, value, parts, advantage[..., None]], -1)
        table = table.flatten(0, 1)
        mean, deviation = masked_mean(table, counted), masked_variance(table, counted).sqrt()
        largest = torch.where(counted[:, None], table.abs(), 0.0).amax(0)
        metrics = {"advantage_mean": mean[-1], "advantage_std": deviation[-1], "advantage_max": largest[-1]}
        for i, (name, suffix) in enumerate(zip(self.streams, self._suffixes(), strict=True)):
            missed, reward, expected, part = range(count + i, 5 * count, count)
            metrics |= {
                f"return{suffix}": mean[i],
                f"return_std{suffix}": deviation[i],
                f"explained_variance{suffix}": 1.0 - (deviation[missed] / deviation[i].clamp(min=1e-4)).square(),
                f"dream_reward{suffix}": mean[reward],
                f"value{suffix}": mean[expected],
            }
            if count > 1:
                metrics |= {
                    f"advantage_mean_{name}": mean[part],
                    f"advantage_std_{name}": deviation[part],
                    f"advantage_max_{name}": largest[part],
                }
        return metrics

    def _suffixes(self) -> list[str]:
        """What the names of a stream's metrics end with; the task's own have none."""
        return ["" if name == TASK else f"_{name}" for name in self.streams]


WHOLE_WEIGHT = 0.05
"""The weight of a stream from which on all of the critic's errors in it count."""
