"""Updates of Reverie on any device: a line of JSON for every task of a list, as soon as it is measured.

The first line says how fast the device multiplies large matrices. The first update of a task is not counted, nor are
the four that may record its graphs.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable

import clock
import torch
from reverie_update import count, make_agent, make_batch
from torch.utils.flop_counter import FlopCounterMode

from reverie import compilation
from reverie.run.device import choose_device

WARM = 5
"""Updates before the clock runs: a compiler traces in the first, and graphs are recorded in those that follow."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
WIDTHS = {"cuda": 8192, "cpu": 256}
"""Of the square matrices whose product shows the rate of a device."""


def waited(action: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """The action, over when the device has done it."""

    def call() -> None:
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return call


def rate(dtype: torch.dtype, device: torch.device, seconds: float) -> float:
    """Billions of operations per second in products of large matrices."""
    width = WIDTHS[device.type]
    left, right = torch.rand(2, width, width, device=device).to(dtype)
    product = waited(lambda: left @ right, device)
    product()
    return 2 * width**3 / min(clock.times_of(product, seconds)) / 1e6


def measure(task: clock.Task, device: torch.device) -> dict[str, object]:
    """Times of updates, the most memory that they held, and where nothing is compiled the operations of products."""
    agent, batch = make_agent(task), make_batch(task)
    update = waited(lambda: agent.learn(batch), device)
    for _ in range(WARM if agent.compiles else 1):
        update()
    if agent.compiles and not compilation.works():
        return {"failed": "torch cannot compile here"}
    answer = {"milliseconds": clock.times_of(update, task["seconds"]), "parameters": count(agent)}
    if device.type == "cuda":
        answer["megabytes"] = torch.cuda.max_memory_allocated(device) / 2**20
    else:
        answer["megabytes"] = clock.peak()
    if not agent.compiles:
        with FlopCounterMode(display=False) as counter:
            update()
        answer["gigaflop"] = counter.get_total_flops() / 1e9
    return answer


def main() -> None:
    """Measures one task after another; what does not fit into memory is no reason to stop."""
    tasks = clock.task()["tasks"]
    device = choose_device(tasks[0]["config"]["run"]["device"])
    seconds = min(tasks[0]["seconds"], 1.0)
    print(json.dumps({name: rate(dtype, device, seconds) for name, dtype in PRECISIONS.items()}), flush=True)
    for task in tasks:
        try:
            answer = measure(task, device)
        except torch.OutOfMemoryError:
            answer = {"failed": "out of memory"}
        print(json.dumps(answer), flush=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)


if __name__ == "__main__":
    main()
