"""What the products of one update would take if nothing else did: how many there are, and how fast this machine can be.

Products are counted in Reverie's update as it is written, without native kernels. The rate is that of large matrices in
single precision: the best of thirty.
"""

from __future__ import annotations

import json

import clock
import torch
from reverie_update import make_agent, make_batch
from torch.utils.flop_counter import FlopCounterMode

WIDTH = 2048
"""Of the square matrices: 48 MB, more than a core's own caches hold."""


def gigaflops() -> float:
    """Billions of operations per second in products of large matrices."""
    left, right = torch.rand(2, WIDTH, WIDTH)
    best = min(clock.times_of(lambda: left @ right, 0.0)[0] for _ in range(30))
    return 2 * WIDTH**3 / best / 1e6


if __name__ == "__main__":
    task = clock.task()
    agent, batch = make_agent(task), make_batch(task)
    with FlopCounterMode(display=False) as counter:
        agent.learn(batch)
    print(json.dumps({"gigaflop": counter.get_total_flops() / 1e9, "gigaflops": gigaflops()}))
