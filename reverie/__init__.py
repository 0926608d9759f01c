"""Reverie: agents that learn in dreams. DreamerV3 world models and PPO inside their imagination, in PyTorch."""

from reverie.agent import Agent
from reverie.config import Config
from reverie.env import ENVIRONMENTS
from reverie.errors import ConfigError, DeviceError, EnvironmentFailure, ReverieError, StoredDataError
from reverie.replay import SequenceReplayBuffer
from reverie.run.train import DreamerV3Trainer
from reverie.run.trained import TrainedAgent
from reverie.world.modality import DECODERS, ENCODERS, MODALITY_CONFIGS, ModalityConfig
from reverie.world.model import MultimodalWorldModel

__all__ = [
    "DECODERS",
    "ENCODERS",
    "ENVIRONMENTS",
    "MODALITY_CONFIGS",
    "Agent",
    "Config",
    "ConfigError",
    "DeviceError",
    "DreamerV3Trainer",
    "EnvironmentFailure",
    "ModalityConfig",
    "MultimodalWorldModel",
    "ReverieError",
    "SequenceReplayBuffer",
    "StoredDataError",
    "TrainedAgent",
]
