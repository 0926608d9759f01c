"""Turns the shapes in the package's annotations into checks, for every test: this must precede its first import."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test workers share two cores; more threads only wait

from jaxtyping import install_import_hook

install_import_hook("reverie", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

from collections.abc import Iterator  # noqa: E402

import pytest  # noqa: E402

from reverie import native  # noqa: E402


@pytest.fixture(params=["kernels", "tensors"])
def both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs a test with the native kernels, and again in plain tensors, as every machine without them computes."""
    native.use(request.param == "kernels")
    yield
    native.use(True)
