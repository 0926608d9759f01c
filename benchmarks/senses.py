"""What of each sense the latent holds, with small observations weighed as they are and with a floor under all.

    python benchmarks/senses.py                          # both floors, one seed: four CPU minutes each
    python benchmarks/senses.py --floors 10 --seeds 3

The world model alone learns from random play in the room of senses, of 5 x 5 cells. Then ``benchmarks/probe.py`` reads
from its latents at which wall the right pad is (told by the sound), which color it has (by the text), and which hand is
free (by the body). Results are in ``benchmarks/results/senses.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from pathlib import Path

import probe
import torch
from curves import machine

from reverie.agent import Agent
from reverie.config import load
from reverie.run.train import DreamerV3Trainer
from reverie.types import Batch, Metrics

RESULTS = Path(__file__).parent / "results" / "senses.json"
FACTS = ["wall", "color", "hand"]
UPDATES, EPISODES, HELD_OUT = 2000, 300, 12345

SETTINGS = (
    *("env.name=senses/5", "env.envs=16", "env.mode=inline", "run.threads=1", "run.device=cpu"),
    *("run.train_ratio=32", "replay.batch_size=16", "replay.length=16", "agent.starts=16"),
    *("world.size=tiny", "world.horizon=100", "agent.world_optimizer.rate=0.001", "agent.world_optimizer.warmup=50"),
    *("run.evaluate_every=0", "run.log_every=1000000", "run.checkpoint_every=1000000", "logger.tensorboard=false"),
)


class Enough(Exception):
    """There were so many updates as were asked for."""


class WorldAlone:
    """`Agent.learn` without a behavior: whoever plays goes on as it began."""

    def __init__(self, agent: Agent, updates: int):
        self.agent, self.left = agent, updates

    def __call__(self, batch: Batch) -> tuple[Metrics, dict[str, torch.Tensor]]:
        if self.left == 0:
            raise Enough
        self.left -= 1
        world, generator = self.agent.world, self.agent.generators["learn"]
        latent, _, losses = world.loss(batch, torch.rand(*batch.reward.shape, world.noise, generator=generator))
        self.agent.optimizers["world"].step(losses | {"replay_value": torch.zeros(1)})
        return world.metrics(losses), world.pack(latent.detach())


def measure(floor: float, seed: int, updates: int = UPDATES, episodes: int = EPISODES) -> dict[str, list[float]]:
    """By fact, the share of steps at which it is read right, and that of guessing."""
    with tempfile.TemporaryDirectory() as folder:
        place = [f"run.directory={folder}", f"run.checkpoint_dir={folder}/newest", f"run.seed={seed}"]
        config = load(None, [*SETTINGS, *place, f"world.reconstruction_floor={floor}"])
        trainer = DreamerV3Trainer(config)
        trainer.agent.learn = WorldAlone(trainer.agent, updates)  # type: ignore[method-assign]
        with contextlib.suppress(Enough):
            trainer.train()
        features, facts, episode = probe.gather(trainer.agent, config.env, FACTS, episodes, HELD_OUT)
    reads = {fact: probe.read(features, facts[:, i], episode % 2 == 1) for i, fact in enumerate(FACTS)}
    return {fact: [round(share, 3) for share in shares] for fact, shares in reads.items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--floors", type=float, nargs="+", default=[0.0, 10.0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file to write")
    options = parser.parse_args()
    runs = {f"{floor:g}": [measure(floor, seed) for seed in range(options.seeds)] for floor in options.floors}
    options.results.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine(), "updates": UPDATES, "read": runs}
    options.results.write_text(json.dumps(result, indent=1) + "\n")
    print("| floor | seed | " + " | ".join(FACTS) + " |\n|---|---|" + "---|" * len(FACTS))
    for floor, seeds in runs.items():
        for seed, read in enumerate(seeds):
            print(f"| {floor} | {seed} | " + " | ".join(f"{100 * read[fact][0]:.0f} %" for fact in FACTS) + " |")


if __name__ == "__main__":
    main()
