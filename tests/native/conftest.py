"""`make sanitize` names a compiler of its own, which the suite would not take from its caller."""

import os
from collections.abc import Iterator

import pytest

from reverie.native import build

CHECKED = os.environ.get("SANITIZED_CC")


@pytest.fixture(scope="session", autouse=True)
def _sanitized() -> Iterator[None]:
    """Builds all kernels by that compiler, and makes sure that they bring the sanitizers."""
    with pytest.MonkeyPatch.context() as patch:
        if CHECKED:
            patch.setenv("CC", CHECKED)
            library = build.load()
            assert library is not None and hasattr(library, "__asan_init"), f"no sanitizers by {CHECKED}"
        yield
