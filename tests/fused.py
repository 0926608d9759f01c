"""Lets an agent learn, compiled and as written, and prints as JSON what was compiled and how far the results differ.

A program of its own, because no tracer sees through the checks of shapes that every test has.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

from reverie import compilation, native
from reverie.world.modality import text
from tests import core
from tests.core import FLAT, IMAGE, PASSES, PLANNED, SENSES, VECTORS, make_agent, make_batch, shake
from tests.test_agent import step_of


def distance(mine: Tensor, expected: Tensor) -> float:
    return float((mine - expected).norm() / expected.norm().clamp(min=1e-3))


class Lender:
    """A compiler whose results live in memory that is used again, as those of CUDA graphs do."""

    def __init__(self) -> None:
        self.lent: list[Tensor] = []

    def compiler(self, graph: torch.fx.GraphModule, _: list[Any]) -> Callable[[list[Any]], Any]:
        def run(arguments: list[Any]) -> Any:
            own = {item.untyped_storage().data_ptr() for item in arguments if isinstance(item, Tensor)}
            results = graph(*arguments)
            arguments.clear()
            tensors = [result for result in results if isinstance(result, Tensor) and result.is_floating_point()]
            self.lent += [tensor for tensor in tensors if tensor.untyped_storage().data_ptr() not in own]
            return results

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def __call__(self, graph: torch.fx.GraphModule, examples: list[Tensor]) -> Any:
        return aot_autograd(fw_compiler=self.compiler, bw_compiler=self.compiler)(graph, examples)

    @torch.no_grad()
    def reclaim(self) -> int:
        """Writes over everything; returns how much that was."""
        for tensor in self.lent:
            tensor.fill_(torch.nan)
        count = len(self.lent)
        self.lent.clear()
        return count


def main(
    backend: str, kernels: bool, agent: dict[str, Any], world: dict[str, Any], device: str = "cpu"
) -> dict[str, Any]:
    lender = Lender()
    compilation.BACKEND = lender if backend == "lender" else backend
    native.use(kernels)
    text.depends_on_data = lambda tensor: False  # compiled or not, as a compiler wants it
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    core.SMALL = core.SMALL.model_copy(update=world)
    hierarchy = PLANNED if backend == "lender" else FLAT
    options = {"behavior": PASSES, "hierarchy": hierarchy, "compile": "on", "device": device, **agent}
    plain, fused = (make_agent(IMAGE | VECTORS | SENSES, **options | changes) for changes in ({"compile": "off"}, {}))
    shake(plain), shake(fused)
    batch = make_batch(plain.world)
    expected, _ = plain.learn(batch)
    before = counters["stats"]["unique_graphs"]
    metrics, latents = fused.learn(batch)
    graphs = counters["stats"]["unique_graphs"]
    gradients = {name: distance(fused.optimizers[name].gradient, it.gradient) for name, it in plain.optimizers.items()}
    returned = [*metrics.values(), *latents.values()]
    copies = [value.clone() for value in returned]
    reclaimed = lender.reclaim()
    for seed in range(3):
        batch = make_batch(fused.world, seed=seed)
        later, (then, latents) = plain.learn(batch)[0], fused.learn(batch)
        returned += [*then.values(), *latents.values()]
        copies += [value.clone() for value in returned[len(copies) :]]
        lender.reclaim()
    fused.act(step_of(fused), fused.initial(3))
    return {
        "as written": before,
        "compiled": graphs,
        "compiled later": counters["stats"]["unique_graphs"] - graphs,
        "broken": [*counters["graph_break"], *counters["unimplemented"]],
        "metrics": {name: distance(metrics[name], expected[name]) for name in expected},
        "gradients": gradients,
        "reclaimed": reclaimed,
        "kept": all(map(torch.equal, returned, copies)),
        "later": {name: distance(then[name], later[name]) for name in later},
    }


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
