"""What each native kernel is worth: updates with all of them, and with all but one, by turns in one process.

    python benchmarks/kernels.py                         # every workload, some minutes on one core
    python benchmarks/kernels.py size1m --rounds 20      # some of them, longer

For every workload of ``benchmarks/speed.py`` that is named (and ``default``, the hierarchy that `reverie train` runs),
one line per kernel: how much longer the processor works on an update in plain tensors in its place, as the median over
pairs of updates that follow each other. Time of the process is counted, not of the clock: others may use the machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from speed import WORKLOADS, Workload, describe

from reverie import native
from reverie.types import ObservationSpec

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from reverie_update import make_agent, make_batch

DEFAULT = Workload("default", ("hierarchy.goal_warmup=0",), ObservationSpec((4,), "float32"), 2)
MEASURED = {"default": DEFAULT, **{name: WORKLOADS[name] for name in ("cartpole", "size1m", "pixels")}}


def milliseconds(update: Callable[[], object]) -> float:
    """Of all threads of this process."""
    began = time.process_time()
    update()
    return 1000 * (time.process_time() - began)


def measure(workload: Workload, rounds: int) -> dict[str, tuple[float, float]]:
    """Per kernel: the milliseconds of an update with all kernels, and the share that is added without this one."""
    task = describe(workload, threads=1, seconds=0)
    agent, batch = make_agent(task), make_batch(task)
    pairs: dict[str, list[tuple[float, float]]] = {kernel: [] for kernel in native.KERNELS}
    for kernel in rounds * native.KERNELS:
        native.use(True)
        present = milliseconds(lambda: agent.learn(batch))
        native.use(True, without=[kernel])
        pairs[kernel].append((present, milliseconds(lambda: agent.learn(batch))))
    return {
        kernel: (median(whole for whole, _ in found), median(absent / whole for whole, absent in found) - 1)
        for kernel, found in pairs.items()
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", choices=[*MEASURED, []], default=list(MEASURED))
    parser.add_argument("--rounds", type=int, default=10, help="pairs of updates per kernel")
    options = parser.parse_args()
    for name in options.workloads:
        for kernel, (whole, share) in measure(MEASURED[name], options.rounds).items():
            print(f"{name:10} {kernel:16} {share:+7.1%} of {whole:.1f} ms", flush=True)


if __name__ == "__main__":
    main()
