"""The direction in which an optimizer steps: LaProp or Adam, as pure functions of a gradient and two averages.

The averages alone give the direction of the last step, until the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, lerp


class Moments(NamedTuple):
    """What is averaged over updates, each as long as the parameters."""

    step: Tensor
    square: Tensor


class Averaging(NamedTuple):
    """The decays of step and square, and what is added to the root of the square."""

    beta1: float
    beta2: float
    eps: float


def root(square: Tensor, count: Tensor, by: Averaging) -> Tensor:
    """What gradients are divided by after ``count`` updates."""
    return (square / (1 - by.beta2**count)).sqrt() + by.eps


def laprop_moments(gradient: Tensor, moments: Moments, count: Tensor, by: Averaging) -> Moments:
    """Averages the normalised gradient (LaProp, Ziyin et al. 2020)."""
    square = lerp(gradient.square(), moments.square, by.beta2)
    return Moments(lerp(gradient / root(square, count, by), moments.step, by.beta1), square)


def laprop_direction(moments: Moments, count: Tensor, by: Averaging) -> Tensor:
    """The averaged step."""
    return moments.step / (1 - by.beta1**count)


def adam_moments(gradient: Tensor, moments: Moments, count: Tensor, by: Averaging) -> Moments:
    """Averages the gradient (Adam, Kingma & Ba 2015)."""
    return Moments(lerp(gradient, moments.step, by.beta1), lerp(gradient.square(), moments.square, by.beta2))


def adam_direction(moments: Moments, count: Tensor, by: Averaging) -> Tensor:
    """The averaged gradient, normalised."""
    return moments.step / (1 - by.beta1**count) / root(moments.square, count, by)


class Kind(NamedTuple):
    """How an optimizer averages and where it steps; counts include the update at hand."""

    moments: Callable[[Tensor, Moments, Tensor, Averaging], Moments]
    direction: Callable[[Moments, Tensor, Averaging], Tensor]


KINDS = {"laprop": Kind(laprop_moments, laprop_direction), "adam": Kind(adam_moments, adam_direction)}
