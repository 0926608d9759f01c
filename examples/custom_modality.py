"""A modality of your own: two plain modules for what a laser scanner shows. ``python examples/custom_modality.py``."""

import sys

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from reverie import DECODERS, ENCODERS, ENVIRONMENTS, MODALITY_CONFIGS, DreamerV3Trainer, ModalityConfig, config


class CustomEncoder(nn.Module):
    """Makes of scans [N, 32, 4] tokens [N, 256]."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(4, 32, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(32 * 32, 256))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x.transpose(1, 2))


class CustomDecoder(nn.Module):
    """Makes of the world model's state [N, F] scans [N, 32, 4]."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.LazyLinear(256), nn.SiLU(), nn.Linear(256, 32 * 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).unflatten(-1, (32, 4))


ENCODERS["custom"], DECODERS["custom"] = CustomEncoder, CustomDecoder
MODALITY_CONFIGS["lidar"] = ModalityConfig(
    name="lidar", input_shape=(32, 4), embed_dim=256, encoder_type="custom", decoder_type="custom"
)


class Cave(gymnasium.Env):
    """Turn towards the nearest wall: the scanner sees distances in 32 directions, four times a step."""

    observation_space = spaces.Dict({"lidar": spaces.Box(0, 1, (32, 4)), "speed": spaces.Box(-1, 1, (1,))})
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.wall = 0, int(self.np_random.integers(32))
        return self._scan(0), {}

    def step(self, action):
        self.steps, turn = self.steps + 1, int(action) - 1
        self.wall = (self.wall - turn) % 32
        reward = 1 - min(self.wall, 32 - self.wall) / 16
        return self._scan(turn), reward, False, self.steps == 30, {}

    def _scan(self, turn):
        away = np.abs((np.arange(32) - self.wall + 16) % 32 - 16) / 16
        noise = self.np_random.uniform(0, 0.1, (32, 4))
        return {"lidar": (0.9 * away[:, None] + noise).astype(np.float32), "speed": np.full(1, turn, np.float32)}


ENVIRONMENTS["cave"] = Cave

if __name__ == "__main__":
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    raise SystemExit(DreamerV3Trainer(config.load("flat", values={"env.name": "cave", "run.steps": steps})).train())
