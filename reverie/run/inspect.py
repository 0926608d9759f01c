"""What is in a checkpoint, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from reverie.behavior.hierarchy import GOAL_SPACES
from reverie.env import repeats
from reverie.run import checkpoint


def describe(path: Path) -> Iterator[str]:
    """Lines about the checkpoint at ``path``. Raises StoredDataError where it cannot be read."""
    config, state = checkpoint.load_run(path)
    yield f"{path}: {config.env.name}, seed {config.run.seed}"
    steps, episodes, updates = state["global_step"], state["episodes_collected"], state["updates"]
    frames = steps * repeats(config.env)
    yield f"  {steps} steps ({frames} frames), {episodes} episodes, {updates} updates"
    best = state["best_return"]
    yield f"  best evaluation return: {'none yet' if best is None else round(best, 1)}"
    for row in state["metrics_history"][-5:]:
        yield f"    step {row['step']}: {row['evaluation/return']:.1f} ± {row['evaluation/deviation']:.1f}"
    yield f"  parameters ({config.world.size}):"
    yield from (f"    {name:<24}{count:>12,}" for name, count in count_parameters(state["model_state"]).items())
    if config.hierarchy.enabled:
        yield "  goals in force, one code per environment:"
        sizes = config.world.sizes
        goals = GOAL_SPACES[config.hierarchy.goals](config.hierarchy, sizes.deter, sizes.units)
        yield from (
            f"    {code}" for code in goal_codes(state["collector"]["player"]["goal"][0], goals.distribution.noise)
        )
    yield f"  keys: {' '.join(sorted(state))}"


def goal_codes(codes: Float[Tensor, "E G"], groups: int) -> list[str]:
    """The class of each group, such as ``3-0-7``; ``none yet`` before the first goal."""
    chosen = codes.unflatten(-1, (groups, -1)).argmax(-1).tolist()
    return ["-".join(map(str, row)) if code.any() else "none yet" for row, code in zip(chosen, codes, strict=True)]


def count_parameters(model_state: dict[str, Tensor]) -> dict[str, int]:
    """Numbers per part of the model; the slow critic, being a copy, is left out."""
    counts: Counter[str] = Counter()
    for name, value in model_state.items():
        parts = name.split(".")
        if "slow_critic" not in parts and len(parts) > 3:
            counts[".".join(parts[: 2 if parts[0] == "world" else 3])] += value.numel()
    return {**counts, "total": sum(counts.values())}
