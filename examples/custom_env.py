"""Trains in an environment of your own, which shows 779 numbers and takes 5 actions: ``python examples/custom_env.py``.

The command line takes it as well: ``reverie train --plugin examples/custom_env.py --env custom``.
"""

import sys

import gymnasium
import numpy as np
from gymnasium import spaces

from reverie import ENVIRONMENTS, DreamerV3Trainer, config


class Corridor(gymnasium.Env):
    """Five doors, of which the brightest one is rewarded; a number for each brick of the wall says how bright it is."""

    observation_space = spaces.Box(-1, 1, (779,), np.float32)
    action_space = spaces.Discrete(5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._look(), {}

    def step(self, action):
        self.steps += 1
        reward = float(action == self.door)
        return self._look(), reward, False, self.steps == 20, {}

    def _look(self):
        self.door = int(self.np_random.integers(5))
        wall = self.np_random.uniform(-1, 0, 779).astype(np.float32)
        wall[self.door * 155 : (self.door + 1) * 155] += 1
        return wall


ENVIRONMENTS["custom"] = Corridor

if __name__ == "__main__":
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    choices = {"env.name": "custom", "obs_dim": 779, "action_dim": 5, "run.steps": steps}
    raise SystemExit(DreamerV3Trainer(config.load("flat", values=choices)).train())
