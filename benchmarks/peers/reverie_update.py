"""One update of Reverie, through ``Agent.learn`` on one batch."""

from __future__ import annotations

import clock
import torch

from reverie import config
from reverie.agent import Agent
from reverie.run.device import choose_device, set_up
from reverie.types import ActionPart, Batch, ObservationSpec


def make_agent(task: clock.Task) -> Agent:
    """The agent on the device of the task, with the process set up for it."""
    chosen, observed = config.build(task["config"]), task["observation"]
    set_up(chosen.run.threads, chosen.run.kernels)
    observation = {"observation": ObservationSpec(tuple(observed["shape"]), observed["dtype"])}
    spaces = observation, (ActionPart("action", task["actions"], True),)
    device = choose_device(chosen.run.device)
    return Agent(
        chosen.agent, chosen.world, chosen.behavior, chosen.hierarchy, spaces, device, intrinsic=chosen.intrinsic
    )


def make_observation(task: clock.Task, *batch: int) -> torch.Tensor:
    """Random numbers in [0, 1], or an image of noise."""
    shape = *batch, *task["observation"]["shape"]
    if task["observation"]["dtype"] == "uint8":
        return torch.randint(256, shape, dtype=torch.uint8)
    return torch.rand(shape)


def make_batch(task: clock.Task) -> Batch:
    """Random sequences [B, T, ...]."""
    replay, sizes = task["config"]["replay"], task["sizes"]
    shape = replay["batch_size"], replay["length"]
    action = torch.eye(task["actions"])[torch.randint(task["actions"], shape)]
    first = torch.rand(shape) < 0.02
    return Batch(
        obs={"observation": make_observation(task, *shape)},
        action=action,
        reward=torch.rand(shape),
        first=first,
        last=first.roll(-1, 1),
        terminal=first.roll(-1, 1),
        slot=torch.zeros(shape, dtype=torch.long),
        context_action=action[:, 0],
        context_latent={
            "deter": torch.zeros(shape[0], sizes["deter"]),
            "stoch": torch.zeros(shape[0], sizes["stoch"], dtype=torch.uint8),
        },
    )


def count(agent: Agent) -> int:
    """Parameters that are trained."""
    return sum(parameter.numel() for parameter in agent.parameters() if parameter.requires_grad)


if __name__ == "__main__":
    task = clock.task()
    agent, batch = make_agent(task), make_batch(task)
    clock.report(lambda: agent.learn(batch), task["seconds"], count(agent))
