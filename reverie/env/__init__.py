"""Environments: found by name, adapted to named arrays and one flat action vector, and played side by side.

Start with `make_vector`. `ENVIRONMENTS` is the registry; add your own with ``ENVIRONMENTS["custom"] = factory``.
"""

from reverie.env.placement import with_mode
from reverie.env.registry import ENVIRONMENTS, EnvOptions, adapt, make, repeats, with_protocol
from reverie.env.vector import VectorEnv, make_vector, spaces_of
from reverie.env.wrappers import Environment

__all__ = [
    "ENVIRONMENTS",
    "EnvOptions",
    "Environment",
    "VectorEnv",
    "adapt",
    "make",
    "make_vector",
    "repeats",
    "spaces_of",
    "with_mode",
    "with_protocol",
]
