"""The step of `reverie.optim`, and what a gradient says of the last one, as native kernels."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Array, byref, c_int64
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from reverie import native
from reverie.native.bindings import Recipe, require


class Task(NamedTuple):
    """How a group is trained, and how many numbers each of its tensors has."""

    recipe: Recipe
    sizes: Array[c_int64]


def task(sizes: Sequence[int], *, adam: bool, **recipe: float) -> Task:
    """The keywords are the numbers of `OptimizerOptions` but for the schedule, and ``floor``."""
    return Task(Recipe(adam=adam, **recipe), (c_int64 * len(sizes))(*sizes))


def descend(
    task: Task,
    weight: Float[Tensor, "W"],
    gradient: Float[Tensor, "W"],
    step: Float[Tensor, "W"],
    square: Float[Tensor, "W"],
    rate: Float[Tensor, ""],
    count: Float[Tensor, ""],
    wanted: bool,
) -> Float[Tensor, "2"]:
    """One step in place, unless the gradient is not finite or the step not ``wanted``. Call it where `native.supports`.

    Returns the norm of the gradient, and one where it was not finite.
    """
    width = (sum(task.sizes),)
    require(weight=(weight, width), gradient=(gradient, width), step=(step, width), square=(square, width))
    report = weight.new_empty(2)
    buffers = weight, gradient, step, square
    native.call("descend", byref(task.recipe), *buffers, task.sizes, len(task.sizes), int(wanted), rate, count, report)
    return report


def agreement(
    task: Task,
    gradient: Float[Tensor, "W"],
    step: Float[Tensor, "W"],
    square: Float[Tensor, "W"],
    count: Float[Tensor, ""],
) -> Float[Tensor, "3"]:
    """The product of a gradient and the direction of the last step, and the norms of both; not finite without a step.

    Call it where `native.supports`, before `descend`.
    """
    width = (sum(task.sizes),)
    require(gradient=(gradient, width), step=(step, width), square=(square, width))
    report = gradient.new_empty(3)
    native.call("agreement", byref(task.recipe), gradient, step, square, width[0], count, report)
    return report
