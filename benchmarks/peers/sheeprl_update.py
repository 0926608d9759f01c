"""One update of sheeprl's `dreamer_v3_5`, the published network, through sheeprl's own ``train`` on one batch.

Uncompiled: `algo.compile` aims at GPUs, and does not finish compiling on a CPU in minutes.
No metrics are gathered, which is the cheaper way of sheeprl's own loop.
"""

from __future__ import annotations

import clock
import gymnasium
import hydra
import numpy as np
import torch
from lightning.fabric import Fabric
from omegaconf import OmegaConf
from sheeprl.algos.dreamer_v3_5.agent import build_agent
from sheeprl.algos.dreamer_v3_5.dreamer_v3_5 import train, update_target_critic
from sheeprl.algos.dreamer_v3_5.utils import Moments
from sheeprl.utils.utils import dotdict


def configure(task: clock.Task) -> dotdict:
    """The experiment `dreamer_v3_5` at the sizes of the task."""
    sizes, config = task["sizes"], task["config"]
    world, recurrent = "algo.world_model", "algo.world_model.recurrent_model"
    chosen = {
        "algo.dense_units": sizes["units"],
        "algo.cnn_channels_multiplier": sizes["depth"],
        "algo.horizon": config["agent"]["horizon"],
        "algo.per_rank_sequence_length": config["replay"]["length"],
        "algo.actor.mlp_layers": config["behavior"]["layers"],
        "algo.critic.mlp_layers": config["behavior"]["layers"],
        f"{world}.discrete_size": sizes["classes"],
        f"{world}.stochastic_size": sizes["stoch"],
        f"{world}.encoder.mlp_layers": sizes["layers"],
        f"{world}.observation_model.mlp_layers": sizes["layers"],
        f"{recurrent}.recurrent_state_size": sizes["deter"],
        f"{recurrent}.hidden_size": sizes["hidden"],
        f"{recurrent}.blocks": sizes["blocks"],
        "algo.cnn_keys.encoder": "[observation]" if image(task) else "[]",
        "algo.mlp_keys.encoder": "[]" if image(task) else "[observation]",
    }
    overrides = ["exp=dreamer_v3_5", "env=dummy", *(f"{key}={value}" for key, value in chosen.items())]
    with hydra.initialize_config_module("sheeprl.configs", version_base="1.3"):
        tree = hydra.compose("config", overrides)
    tree.run_name = tree.root_dir = "none"  # a date, that only a running hydra can fill in
    return dotdict(OmegaConf.to_container(tree, resolve=True))


def image(task: clock.Task) -> bool:
    """Whether the observation is an image [H, W, C]."""
    return task["observation"]["dtype"] == "uint8"


def make_batch(task: clock.Task) -> dict[str, torch.Tensor]:
    """Random sequences [T, B, ...] behind one step of context, with its stored latent; images are [C, H, W]."""
    replay, sizes, shape = task["config"]["replay"], task["sizes"], task["observation"]["shape"]
    steps = replay["length"] + 1, replay["batch_size"]
    if image(task):
        observation = torch.randint(256, (*steps, shape[2], *shape[:2]), dtype=torch.uint8)
    else:
        observation = torch.rand(*steps, *shape)
    ends = (torch.rand(*steps, 1) < 0.02).float()
    return {
        "observation": observation,
        "actions": torch.eye(task["actions"])[torch.randint(task["actions"], steps)],
        "rewards": torch.rand(*steps, 1),
        "is_first": ends.roll(1, 0),
        "terminated": ends,
        "truncated": torch.zeros(*steps, 1),
        "deter": torch.zeros(*steps, sizes["deter"], dtype=torch.half),
        "stoch": torch.zeros(*steps, sizes["stoch"], dtype=torch.uint8),
    }


def main() -> None:
    """Times updates on one batch."""
    task = clock.task()
    cfg = configure(task)
    torch.set_num_threads(task["config"]["run"]["threads"])
    torch.set_float32_matmul_precision(cfg.float32_matmul_precision)
    precision = {"fp32": "32-true", "bf16": "bf16-mixed"}[task["config"]["agent"]["precision"]]
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    shape = task["observation"]["shape"]
    box = (
        gymnasium.spaces.Box(0, 255, (shape[2], *shape[:2]), np.uint8)
        if image(task)
        else gymnasium.spaces.Box(-np.inf, np.inf, shape)
    )
    actions = (task["actions"],)
    world, actor, critic, slow, _ = build_agent(
        fabric, actions, False, cfg, gymnasium.spaces.Dict({"observation": box})
    )
    parameters = [*world.parameters(), *actor.parameters(), *critic.parameters()]
    optimizer = fabric.setup_optimizers(hydra.utils.instantiate(cfg.algo.optimizer, params=parameters, _convert_="all"))
    scale = cfg.algo.actor.moments
    moments = Moments(scale.decay, scale.max, scale.percentile.low, scale.percentile.high)
    batch = make_batch(task)

    def update() -> None:
        train(fabric, cfg, world, actor, critic, slow, optimizer, moments, batch, None, actions)
        update_target_critic(critic, slow, cfg.algo.critic.tau)

    clock.report(update, task["seconds"], sum(parameter.numel() for parameter in parameters))


if __name__ == "__main__":
    main()
