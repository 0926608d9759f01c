"""One update of the reference in JAX (danijar/dreamerv3), through its own agent's ``train`` on one batch.

The checkout is named on the command line before the task, and imported as it is. It does not act, report or profile
here, which is the cheaper way of its own loop; each update is waited for. Its peak of memory includes compiling.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import tempfile
from pathlib import Path

import clock

CHECKOUT = Path(sys.argv[1])
sys.path.insert(0, str(CHECKOUT))
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: clock.task()["config"]["run"]["threads"]])  # XLA counts these

import elements  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import ruamel.yaml  # noqa: E402
from dreamerv3.agent import Agent  # noqa: E402


def configure(task: clock.Task, folder: str) -> elements.Config:
    """The reference's defaults at the sizes of the task, with the options that its agent is given."""
    sizes, config = task["sizes"], task["config"]
    defaults = ruamel.yaml.YAML(typ="safe").load(CHECKOUT / "dreamerv3" / "configs.yaml")["defaults"]
    core = {name: sizes[name] for name in ("deter", "hidden", "stoch", "classes", "blocks")}
    chosen = {
        **{rf"agent\.dyn\.rssm\.{name}": size for name, size in core.items()},
        r"agent\..*\.depth": sizes["depth"],
        r"agent\..*\.units": sizes["units"],
        r"agent\..*\.bins": sizes["bins"],
        r"agent\.(enc|dec)\.simple\.layers": sizes["layers"],
        r"agent\.(policy|value)\.layers": config["behavior"]["layers"],
        "agent.imag_length": config["agent"]["horizon"],
        "agent.imag_last": config["agent"]["starts"],
        "agent.horizon": config["behavior"]["horizon"],
        "agent.report": False,
        "batch_size": config["replay"]["batch_size"],
        "batch_length": config["replay"]["length"],
        "logdir": folder,
        "jax.platform": "cpu",
        "jax.compute_dtype": {"fp32": "float32", "bf16": "bfloat16"}[config["agent"]["precision"]],
        "jax.enable_policy": False,
    }
    whole = elements.Config(defaults).update(chosen)
    shared = "logdir", "seed", "batch_size", "batch_length", "report_length", "replay_context", "replica", "replicas"
    settings = {**whole.jax, "profiler": False}
    return elements.Config(**whole.agent, **{name: whole[name] for name in shared}, jax=settings)


def make_agent(task: clock.Task, folder: str) -> Agent:
    """The reference's agent for the observation and the actions of the task, compiled."""
    shape, dtype = task["observation"]["shape"], task["observation"]["dtype"]
    flags = {name: elements.Space(bool) for name in ("is_first", "is_last", "is_terminal")}
    observation = {"observation": elements.Space(np.dtype(dtype), tuple(shape)), "reward": elements.Space(np.float32)}
    actions = {"action": elements.Space(np.int32, (), 0, task["actions"])}
    return Agent(observation | flags, actions, configure(task, folder))


def make_batch(task: clock.Task, agent: Agent) -> dict[str, np.ndarray]:
    """Random sequences [B, 1 + T, ...] behind one step of context, with its stored latent, on the device."""
    random, replay = np.random.default_rng(0), task["config"]["replay"]
    steps = replay["batch_size"], 1 + replay["length"]
    batch = {name: np.zeros((*steps, *space.shape), space.dtype) for name, space in agent.spaces.items()}
    ends = random.random(steps) < 0.02
    shape = *steps, *task["observation"]["shape"]
    image = task["observation"]["dtype"] == "uint8"
    batch |= {
        "observation": random.integers(256, size=shape, dtype=np.uint8) if image else random.random(shape, np.float32),
        "action": random.integers(task["actions"], size=steps, dtype=np.int32),
        "reward": random.random(steps, np.float32),
        "is_first": np.roll(ends, 1, 1),
        "is_last": ends,
        "is_terminal": ends,
    }
    return next(iter(agent.stream(itertools.repeat(batch))))


def count(agent: Agent) -> int:
    """Parameters that are trained."""
    trained = tuple(f"{module.name}/" for module in agent.model.modules)
    return sum(value.size for name, value in agent.params.items() if name.startswith(trained))


def main() -> None:
    """Times updates on one batch."""
    task = clock.task()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        agent = make_agent(task, folder)
        batch = make_batch(task, agent)
        carry = agent.init_train(task["config"]["replay"]["batch_size"])

    def update() -> None:
        nonlocal carry
        carry, _, _ = agent.train(carry, dict(batch))
        jax.block_until_ready(agent.params)

    clock.report(update, task["seconds"], count(agent))


if __name__ == "__main__":
    main()
