"""Lets an agent learn, compiled and as written, and prints as JSON what was compiled and how far the results differ.

A program of its own, because no tracer sees through the checks of shapes that every test has.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from reverie import compilation, native
from reverie.behavior.actor_critic import BehaviorOptions
from tests import core
from tests.core import IMAGE, VECTORS, make_agent, make_batch, shake
from tests.test_agent import step_of


def distance(mine: Tensor, expected: Tensor) -> float:
    return float((mine - expected).norm() / expected.norm().clamp(min=1e-3))


def main(backend: str, kernels: bool, agent: dict[str, Any], world: dict[str, Any]) -> dict[str, Any]:
    compilation.BACKEND = backend
    native.use(kernels)
    torch.set_num_threads(1)
    core.SMALL = core.SMALL.model_copy(update=world)
    options = {"behavior": BehaviorOptions(epochs=2, minibatches=4), **agent}
    plain, fused = (make_agent(IMAGE | VECTORS, compile=choice, **options) for choice in ("off", "on"))
    shake(plain), shake(fused)
    batch = make_batch(plain.world)
    expected, _ = plain.learn(batch)
    before = counters["stats"]["unique_graphs"]
    metrics, _ = fused.learn(batch)
    graphs = counters["stats"]["unique_graphs"]
    gradients = {name: distance(fused.optimizers[name].gradient, it.gradient) for name, it in plain.optimizers.items()}
    for seed in range(3):
        fused.learn(make_batch(fused.world, seed=seed))
    fused.act(step_of(fused), fused.initial(3))
    return {
        "as written": before,
        "compiled": graphs,
        "compiled later": counters["stats"]["unique_graphs"] - graphs,
        "broken": list(counters["graph_break"]),
        "metrics": {name: distance(metrics[name], expected[name]) for name in expected},
        "gradients": gradients,
    }


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
