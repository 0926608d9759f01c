"""Turns the shapes in the package's annotations into checks, for every test: this must precede its first import."""

from tests.surroundings import settle

settle()

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("reverie", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import random  # noqa: E402
from collections.abc import Iterator  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from reverie import native  # noqa: E402


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """Gives each test the same random numbers and one thread, whichever tests came before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(1)


@pytest.fixture(params=["kernels", "tensors"])
def both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs a test with the native kernels, and again in plain tensors, as every machine without them computes."""
    native.use(request.param == "kernels")
    yield
    native.use(True)
