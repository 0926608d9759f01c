"""The global generators of Python, numpy and torch, as if each environment were alone with them.

An environment should draw from a generator of its own, which `reset` seeds; many draw from the global ones. Those are
seeded for the making of each environment and for each of its episodes, and an environment finds them in every call as
it left them. So environments differ from each other, an episode can be repeated from its seed, and rows are the same
wherever they are made.

On torch's side this is the generator of the CPU.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.random import mtrand

from reverie.env.wrappers import Environment, Observation, Wrapper


class GlobalGenerators:
    """The state of all three. Inside of ``with``, the global generators have it, and it follows what they draw.

    What was there before is not put back: that is up to `kept`, once for many environments.
    """

    def __init__(self, seed: int):
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Begins anew, with streams that are independent of each other and of whatever else ``seed`` determines."""
        seeds = np.random.SeedSequence(seed, spawn_key=(0,)).generate_state(3)
        source = random.Random(int(seeds[0]))
        self._python, self._next = source.getstate(), source.getrandbits(64)
        self._numpy = np.random.MT19937(int(seeds[1]))
        self._torch = torch.Generator().manual_seed(int(seeds[2])).get_state()

    def __enter__(self) -> None:
        random.setstate(self._python)
        mtrand.set_bit_generator(self._numpy)
        torch.set_rng_state(self._torch)

    def __exit__(self, *error: object) -> None:
        # Python's state has 625 numbers. One more draw tells much sooner whether anything was drawn; else the state is
        # still the one that is known. A normal that `random.gauss` holds back is used up without a draw.
        if random.getrandbits(64) != self._next or self._python[2] is not None:
            self._python, self._next = random.getstate(), random.getrandbits(64)
        self._numpy = mtrand.get_bit_generator()
        self._torch = torch.get_rng_state()


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Whatever `GlobalGenerators` are entered inside, the caller's go on afterwards as if nothing had been drawn.

    Lost is only a second normal that numpy's may hold back: to ask for it takes longer than many environments' steps.
    """
    python, numpy, cpu = random.getstate(), mtrand.get_bit_generator(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        mtrand.set_bit_generator(numpy)
        torch.set_rng_state(cpu)


def with_generators(build: Callable[[], Environment], seed: int) -> Environment:
    """The environment that ``build`` makes, with global generators that ``seed`` determines until an episode begins."""
    generators = GlobalGenerators(seed)
    with generators:
        environment = build()
    return WithGenerators(environment, generators)


class WithGenerators(Wrapper):
    """Gives an environment its global generators in every call."""

    def __init__(self, inner: Environment, generators: GlobalGenerators):
        super().__init__(inner)
        self.generators = generators

    def reset(self, seed: int) -> Observation:
        self.generators.seed(seed)
        with self.generators:
            return self.inner.reset(seed)

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool]:
        with self.generators:
            return self.inner.step(action)

    def render(self) -> np.ndarray | None:
        with self.generators:
            return self.inner.render()

    def close(self) -> None:
        with self.generators:
            self.inner.close()
