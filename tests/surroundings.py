"""What the suite leaves of its caller's settings: it has to say the same wherever and by whomever it is run."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

KEPT = {
    *("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "PYTHONNOUSERSITE", "PYTHONDONTWRITEBYTECODE"),
    *("PYTHONPYCACHEPREFIX", "PYTHONHASHSEED", "TORCH_HOME"),
}
"""Where Python and torch find their files, and what no test can notice."""

PREFIXES = (
    *("PYTHON", "TORCH", "PYTORCH_", "ATEN_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_"),
    *("WANDB_", "MPL", "TF_CPP_", "REVERIE_"),
)
"""Of variables by which Python, torch, its libraries and trackers of runs change what they do."""

OTHERS = {"CC", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"}
"""The compiler of native kernels, and what changes the form of a text."""


def neutral(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what its user has set about computing and printing; with one thread.

    Two test workers share two cores: more threads only wait.
    """
    kept = {
        name: value
        for name, value in environment.items()
        if name in KEPT or not (name in OTHERS or name.startswith(PREFIXES))
    }
    return kept | {"OMP_NUM_THREADS": "1"}


def settle() -> None:
    """Makes this process, and those that it starts, independent of who began it; it must precede the import of torch.

    Nobody's signals are ignored, as they are behind ``nohup``, and files that are made can be read by others.
    """
    settings = neutral(os.environ)
    for name in os.environ.keys() - settings.keys():
        del os.environ[name]
    os.environ.update(settings)
    os.umask(0o022)
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
