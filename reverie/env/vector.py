"""Several environments side by side, as one: a `Step` of E rows in answer to E actions.

::

    step(a)    row e:  ... | o_last, last=True | o_0, first=True | o_1 ...
                             episode ends here   a[e] is ignored

Rows come in lock-step and in order, so the same seed and actions give the same rows wherever the environments run.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import cloudpickle
import gymnasium
import numpy as np

from reverie.env import plugins
from reverie.env.generators import kept, with_generators
from reverie.env.placement import with_mode
from reverie.env.registry import ENVIRONMENTS, EnvOptions, find, make, suite_of
from reverie.env.slot import Slot, say
from reverie.env.worker import Inline, Place, Worker
from reverie.env.wrappers import Environment
from reverie.errors import ConfigError, MisfitError
from reverie.types import ActionSpec, ObservationSpec, Step, action_width

logger = logging.getLogger(__name__)

GRACE_SECONDS = 2.0
"""How long `VectorEnv.close` waits for workers before it ends them."""


class VectorEnv:
    """``size`` environments that ``place`` makes of number and seed, with one episode stream each.

    Raises `ConfigError` if the environments do not all have the same spaces, and `EnvironmentFailure` when one of them
    fails more often than ``options.restarts`` allows.
    """

    def __init__(self, options: EnvOptions, seed: int, size: int, place: Callable[[int, int], Place]):
        self.name, self.told = options.name, options.info_metrics
        self.seed = seed
        self.size = size
        self.slots = [Slot(number, options, seed, functools.partial(place, number)) for number in range(size)]
        try:
            for slot in self.slots:
                slot.place.send("describe")
            with kept():
                described = [slot.describe() for slot in self.slots]
            for number, spaces in enumerate(described):
                if spaces != described[0]:
                    raise ConfigError(
                        f"{options.name}: worker {number} has the spaces {spaces}, but worker 0 {described[0]}"
                    )
        except BaseException:
            self.close()
            raise
        self.observation, self.action, notes = described[0]
        for note in notes:
            say(options.name, note)
        self._action_shape = (size, action_width(self.action))

    def step(self, action: np.ndarray) -> Step:
        """Takes the actions [E, A]; where the row before was ``last`` (and at the start) an episode begins instead."""
        self.send(action)
        return self.receive()

    def send(self, action: np.ndarray) -> None:
        """Gives out the actions of the next `receive`; environments in other processes step from here on."""
        if action.shape != self._action_shape:
            raise ValueError(f"actions have shape {action.shape}, expected {self._action_shape}")
        for slot, row in zip(self.slots, action.copy(), strict=True):
            slot.send(row)

    def receive(self) -> Step:
        """The rows that `send` asked for. Until then, `state_dict` knows nothing of these actions."""
        with kept():
            rows = [slot.receive() for slot in self.slots]
        obs, reward, first, last, terminal, info = zip(*rows, strict=True)
        return Step(
            {key: np.array([one[key] for one in obs]) for key in self.observation},
            np.array(reward, np.float32),
            np.array(first),
            np.array(last),
            np.array(terminal),
            {name: np.array([(one.get(name, 0.0), name in one) for one in info], float) for name in self.told},
        )

    def render(self, number: int = 0) -> np.ndarray | None:
        """A picture of one environment, uint8 [height, width, 3], where it can draw one."""
        place = self.slots[number].place
        place.send("render")
        with kept():
            return place.receive(self.slots[number].options.step_timeout)

    def state_dict(self) -> dict[str, Any]:
        """Where every environment is: enough to continue with the very same rows."""
        return {"seed": self.seed, "slots": [slot.state_dict() for slot in self.slots]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back into the open episodes by repeating their actions.

        An episode that cannot be continued ends as truncated, with one warning for all of them. Raises
        `MisfitError` if the state is of another number of environments.
        """
        if len(state["slots"]) != self.size:
            raise MisfitError(
                f"the saved run has {len(state['slots'])} environments, this one {self.size}; set env.envs to match"
            )
        self.seed = state["seed"]
        with kept():
            for slot, saved in zip(self.slots, state["slots"], strict=True):
                slot.send_restore(saved, self.seed)
            lost = [slot.number for slot in self.slots if not slot.receive_restore()]
        if lost:
            logger.warning("%s: the open episodes of workers %s cannot be continued and are truncated", self.name, lost)

    def abandon(self) -> None:
        """Gives up every open episode: the next row of each ends it as truncated."""
        for slot in self.slots:
            slot.lost = slot.open

    def close(self) -> None:
        """Closes every environment; those that do not answer are ended."""
        with kept():
            for slot in self.slots:
                slot.place.release()
        deadline = time.monotonic() + GRACE_SECONDS
        for slot in self.slots:
            slot.place.stop(deadline)


def make_vector(options: EnvOptions, seed: int, *, envs: int | None = None) -> VectorEnv:
    """``envs`` (or ``options.envs``) environments, inline or in processes. Raises as `make` and `VectorEnv` do."""
    size = envs or options.envs
    plugins.load(options.plugins)
    find(options.name)
    options = with_mode(options)
    recipe = None if options.mode == "inline" else _recipe(options)
    if recipe is None:
        return VectorEnv(options, seed, size, lambda number, own: Inline(functools.partial(_make, options), own))
    return VectorEnv(options, seed, size, lambda number, own: Worker(recipe, own, f"{options.name}-{number}"))


def spaces_of(options: EnvOptions) -> tuple[dict[str, ObservationSpec], ActionSpec]:
    """What an environment shows and takes: one is made and closed. Raises as `make_vector` does."""
    with contextlib.closing(make_vector(options.model_copy(update={"mode": "inline"}), 0, envs=1)) as envs:
        return envs.observation, envs.action


def _recipe(options: EnvOptions) -> bytes | None:
    """How another process makes the environment, or None (with a warning) if that cannot be told."""
    try:
        registered = cloudpickle.dumps(_registered(options.name))
        return cloudpickle.dumps(functools.partial(_build, options, registered))
    except Exception as error:  # a foreign object may raise anything here
        logger.warning("%s cannot be sent to another process and runs in this one: %s", options.name, error)
        return None


def _registered(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What stands behind a name, here and in Gymnasium's registry: another process has only what packages bring."""
    suite = suite_of(name)
    ours = {suite: ENVIRONMENTS[suite]} if suite else {}
    return ours, {name: gymnasium.registry[name]} if name in gymnasium.registry else {}


def _build(options: EnvOptions, registered: bytes, seed: int) -> Environment:
    plugins.load(options.plugins)  # before the rest is unpickled, which may refer to them
    ours, gymnasiums = cloudpickle.loads(registered)
    ENVIRONMENTS.update(ours)
    gymnasium.registry.update(gymnasiums)
    return _make(options, seed)


def _make(options: EnvOptions, seed: int) -> Environment:
    return with_generators(functools.partial(make, options), seed)
