"""What a trained agent's latent holds: how well a linear reading of it finds the facts of an episode.

    python benchmarks/probe.py --checkpoint checkpoints/latest.pt wall color hand

The facts are integers that the environment tells in ``info`` and that stay the same during an episode. The reading is a
ridge regression on one-hots, fitted to half of the episodes and tried on the others, at every step of them. A fact that
no sense or no memory holds is read as often as its most frequent value.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from reverie.agent import Agent
from reverie.env import EnvOptions, make_vector, with_mode
from reverie.run.collect import Player
from reverie.run.evaluate import restore_agent

RIDGE = 1e-2
"""Added to the mean squares of the features."""


@torch.no_grad()
def gather(agent: Agent, options: EnvOptions, facts: list[str], episodes: int, seed: int) -> tuple[Tensor, ...]:
    """Of all steps of whole episodes, so many or more: latent features [n, F], facts [n, facts], the episode [n]."""
    options = with_mode(options.model_copy(update={"info_metrics": dict.fromkeys(facts, "last")}))
    envs = make_vector(options, seed, envs=min(episodes, 32))
    player = Player(envs, agent, torch.Generator(agent.device).manual_seed(seed))
    open_rows: list[list[Tensor]] = [[] for _ in range(envs.size)]
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    while len(found) < episodes:
        step = player.observe()
        player.act(step)
        features = player.carry.latent.features.cpu()
        for env, rows in enumerate(open_rows):
            rows.append(features[env])
            if step.last[env]:
                told = torch.tensor([step.info[fact][env, 0] for fact in facts]).long()
                found.append((torch.stack(rows), told.repeat(len(rows), 1), torch.full((len(rows),), len(found))))
                rows.clear()
    envs.close()
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def read(features: Tensor, fact: Tensor, tried: Tensor) -> tuple[float, float]:
    """The share of ``tried`` rows [n] whose fact is read right, after fitting the others; and that of guessing."""
    x = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    y = torch.nn.functional.one_hot(fact).double()
    fitted, count = x[~tried], int((~tried).sum())
    moment = fitted.t() @ fitted / count + RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(moment, fitted.t() @ y[~tried] / count)
    right = (x[tried] @ weights).argmax(1) == fact[tried]
    guess = fact[~tried].bincount().argmax()
    return float(right.float().mean()), float((fact[tried] == guess).float().mean())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("facts", nargs="+", help="names in info")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/latest.pt"))
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trust", action="store_true", help="run the code that the checkpoint names")
    options = parser.parse_args()
    agent, config = restore_agent(options.checkpoint, "auto", trust=options.trust)
    features, facts, episode = gather(agent, config.env, options.facts, options.episodes, options.seed)
    tried = episode % 2 == 1
    print(f"{'fact':<16}{'read right':>12}{'guessed':>10}   ({len(features)} steps of {options.episodes} episodes)")
    for column, name in enumerate(options.facts):
        right, guessed = read(features, facts[:, column], tried)
        print(f"{name:<16}{right:>12.1%}{guessed:>10.1%}")


if __name__ == "__main__":
    main()
