"""The suite itself: what its caller has set changes nothing, and no test depends on those before it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.surroundings import neutral

ROOT = Path(__file__).parents[1]

SET = {
    **{"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "OMP_PROC_BIND": "true", "ATEN_CPU_CAPABILITY": "default"},
    **{"PYTHONOPTIMIZE": "2", "PYTHONWARNINGS": "error", "PYTHONIOENCODING": "ascii", "PYTHONINSPECT": "1"},
    **{"WANDB_MODE": "online", "MPLBACKEND": "none", "CC": "false", "COLUMNS": "7", "FORCE_COLOR": "1"},
}
"""What somebody may have set, each of which made a test fail, hang or check nothing."""


def test_settings_about_computing_and_printing_are_left_out():
    lasting = {"PATH": "/bin", "HOME": "/home/me", "PYTHONPATH": "/here", "TMPDIR": "/tmp", "CUDA_VISIBLE_DEVICES": "0"}
    assert neutral(SET | lasting) == lasting | {"OMP_NUM_THREADS": "1"}
    assert neutral({}) == {"OMP_NUM_THREADS": "1"}


def test_a_process_settles_whoever_began_it():
    program = (
        "import os, signal, sys\n"
        "from tests.surroundings import settle\n"
        "settle()\n"
        f"left = os.environ.keys() & {set(SET)!r}\n"
        "import torch\n"
        "taken = [signal.getsignal(number) is not signal.SIG_IGN for number in (signal.SIGINT, signal.SIGHUP)]\n"
        "print(sorted(left), taken, torch.get_num_threads(), os.umask(0))"
    )
    inherited = {name: value for name, value in os.environ.items() if name not in SET}
    settings = {name: value for name, value in SET.items() if name not in ("PYTHONINSPECT", "PYTHONWARNINGS")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=inherited | settings,
        preexec_fn=lambda: [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)],
        umask=0o077,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "['OMP_NUM_THREADS'] [True, True] 1 18", done.stderr


@pytest.mark.parametrize("order", [1, 2])
def test_every_test_draws_the_same_numbers_with_one_thread(order):
    drawn = random.random(), np.random.random(), torch.rand(()).item()
    assert drawn == (0.8444218515250481, 0.5488135039273248, 0.49625658988952637) and torch.get_num_threads() == 1
    torch.set_num_threads(2)
