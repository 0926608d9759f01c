"""Native kernels for CPUs: built on first use with the machine's C compiler, cached, and never required.

The C files hold what dominates an update on a CPU while the matrices are small, or torch's products slow
(`faster_than_torch`): the loops over time, stacks of layers, two-hot heads, and the optimizer's step. Where products
are to be in bf16 and the processor has such products, the same files are built once more with them. `supports` is
false where no compiler is found, after `use(False)`, and for tensors that the kernels do not know; every caller then
computes the same in plain tensors, which is also the oracle of the tests.

This file says which kernels may be used; `layers`, `rssm`, `two_hot` and `optimizer` are functions of tensors that call
them. Nothing outside this folder knows of pointers and structures.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reverie.native import build

BLOCK = 24
"""Rows that one thread carries through a kernel together."""
LARGEST_MATRIX = 2**17
"""Numbers in a matrix above which torch's products are faster than ours, unless ours are `faster_than_torch`."""
KERNELS = ("norm_silu", "stack", "observe", "dream", "two_hot_mean", "two_hot_loss", "optimizer")
"""What can be computed natively or in plain tensors, each by itself."""

_enabled = frozenset(KERNELS)


def use(enabled: bool, without: Collection[str] = ()) -> None:
    """Turns the kernels on or off for this process; some of `KERNELS` may stay off, as `benchmarks/kernels.py` does.

    Raises ValueError where one is unknown.
    """
    global _enabled
    if unknown := sorted(set(without) - set(KERNELS)):
        raise ValueError(f"no native kernels {unknown}, there are {', '.join(KERNELS)}")
    _enabled = frozenset(KERNELS) - set(without) if enabled else frozenset()


def version() -> str:
    """What identifies the machine code in use; empty without kernels."""
    library = build.load() if _enabled else None
    return Path(library._name).stem if library else ""


def supports(*tensors: Tensor, kernel: str | None = None) -> bool:
    """Whether a kernel, or any, can compute with these: single precision on a CPU, and at least one row of each."""
    return (
        all(tensor.is_cpu and tensor.dtype == torch.float32 and tensor.numel() for tensor in tensors)
        and not torch.compiler.is_compiling()
        and (bool(_enabled) if kernel is None else kernel in _enabled)
        and build.load() is not None
    )


def faster_than_torch() -> bool:
    """Whether torch's products in single precision leave half of the processor idle: MKL uses AVX-512 on Intel only."""
    features = build.features()
    return torch.backends.mkl.is_available() and "avx512f" in features and "GenuineIntel" not in features


def uses_bf16() -> bool:
    """Whether products are in bf16 now: where autocast says so, and the processor has them."""
    return (
        torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and "avx512_bf16" in build.features()
        and build.load(bf16=True) is not None
    )


def call(kernel: str, *arguments: Any, bf16: bool | None = None) -> None:
    """Calls a function of the C files, with what `bindings.SIGNATURES` says that it takes.

    ``bf16`` is for the way back, which has to multiply as the way forward did when `uses_bf16` held or did not.
    Raises MemoryError where the kernel finds none, and what an argument that does not fit raises there.
    """
    library = build.load(bf16=uses_bf16() if bf16 is None else bf16)
    if getattr(library, kernel)(*arguments):
        raise MemoryError(f"no memory for the native kernel {kernel}")
