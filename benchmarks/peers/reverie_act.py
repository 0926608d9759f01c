"""One step of play of Reverie in all environments at once, through ``Agent.act``."""

from __future__ import annotations

import clock
import numpy as np
from reverie_update import count, make_agent, make_observation

from reverie.types import Step

if __name__ == "__main__":
    task = clock.task()
    agent, envs = make_agent(task), task["config"]["env"]["envs"]
    observation, never = make_observation(task, envs).numpy(), np.zeros(envs, bool)
    step = Step({"observation": observation}, np.zeros(envs, np.float32), never, never, never)
    carry = agent.initial(envs)

    def act() -> None:
        """A step that goes on from what the last one remembered."""
        global carry
        _, carry = agent.act(step, carry)

    clock.report(act, task["seconds"], count(agent))
