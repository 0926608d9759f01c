"""What the products of one update would take if nothing else did: how many there are, and how fast this machine can be.

Products are counted in Reverie's update as it is written, without native kernels. The rates are those of large matrices
in single precision and in bf16, by torch or by the native kernels, whichever is faster: the best of thirty.
"""

from __future__ import annotations

import json

import clock
import torch
from reverie_update import make_agent, make_batch
from torch.utils.flop_counter import FlopCounterMode

from reverie import native
from reverie.native.layers import stack
from reverie.nets.layers import MLP

WIDTH = 2048
"""Of the square matrices: 48 MB, more than a core's own caches hold."""


@torch.no_grad()
def gigaflops(dtype: torch.dtype) -> float:
    """Billions of operations per second in products of large matrices."""
    left, right = torch.rand(2, WIDTH, WIDTH)
    network, halves = MLP(WIDTH, 1, 0, WIDTH).dense, (left.to(dtype), right.to(dtype))
    native.use(True)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        products = [lambda: halves[0] @ halves[1], *[lambda: stack(left, network)] * native.supports(left)]
        best = min(clock.times_of(product, 0.0)[0] for product in products for _ in range(30))
    return 2 * WIDTH**3 / best / 1e6


if __name__ == "__main__":
    task = clock.task()
    agent, batch = make_agent(task), make_batch(task)
    with FlopCounterMode(display=False) as counter:
        agent.learn(batch)
    rates = {"gigaflops": gigaflops(torch.float32), "gigaflops in bf16": gigaflops(torch.bfloat16)}
    print(json.dumps({"gigaflop": counter.get_total_flops() / 1e9, **rates}))
