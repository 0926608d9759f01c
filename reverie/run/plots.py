"""Charts for people: matplotlib without a screen, where it is installed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def pyplot(path: Path) -> Any:
    """Matplotlib's pyplot, or None and a warning that there will be no ``path``."""
    try:
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot
    except ImportError:
        log.warning("no %s: pip install matplotlib", path.name)
        return None
    return pyplot
