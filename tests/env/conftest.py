"""Every test may add environments to the registry; none leaves them there."""

from __future__ import annotations

import pytest

from reverie.env import ENVIRONMENTS
from tests.counting import create_counting


@pytest.fixture(autouse=True)
def counting_registered():
    saved = dict(ENVIRONMENTS)
    ENVIRONMENTS["counting"] = create_counting
    yield
    ENVIRONMENTS.clear()
    ENVIRONMENTS.update(saved)
