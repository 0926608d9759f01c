"""How many processor cores a run takes, and which errors mean that memory is lacking."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
import torch

from reverie.behavior.intrinsic.sight import Sight
from reverie.env.text import to_bytes
from reverie.run import device
from tests.intrinsic import setting


@pytest.fixture
def share(monkeypatch, tmp_path):
    """Writes what a container's control group says; this process may run on eight cores."""
    monkeypatch.setattr(device, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    for name in device.BINDINGS:
        monkeypatch.delenv(name, raising=False)

    def write(**files):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("max", "cpu.max")
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{text}\n")

    return write


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"max": "max 100000"}, 8),
        ({"max": "350000 100000"}, 3),
        ({"max": "50000 100000"}, 1),
        ({"max": "1600000 100000"}, 8),
        ({"max": "nonsense"}, 8),
        ({"cpu__cpu.cfs_quota_us": "200000", "cpu__cpu.cfs_period_us": "100000"}, 2),
        ({"cpu__cpu.cfs_quota_us": "-1", "cpu__cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_a_container_gets_no_more_cores_than_its_share(share, files, expected):
    share(**files)
    assert device.cores() == expected


@pytest.mark.parametrize(("bound", "threads", "expected"), [(True, 3, 3), (True, 99, 8), (False, 3, 1)])
def test_a_thread_that_is_bound_to_its_core_does_not_count_for_all(share, monkeypatch, bound, threads, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(device, "THREADS", threads)
    if bound:
        monkeypatch.setenv("GOMP_CPU_AFFINITY", "0 1 2")
    assert device.cores() == expected


def test_torch_takes_its_threads_from_the_option_or_the_share(share, monkeypatch):
    taken = []
    monkeypatch.setattr(device, "THREADS", 6)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    share(max="200000 100000")
    device.set_up(0, "auto")
    device.set_up(1, "auto")
    device.set_up(5, "auto")
    assert taken == [2, 1, 2]


@pytest.mark.parametrize(("capability", "warned"), [("AVX2", True), ("AVX512", False)])
def test_half_precision_that_would_be_emulated_is_pointed_out(capability, warned, monkeypatch, caplog):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    for precision, place in (("bf16", "cpu"), ("fp32", "cpu"), ("bf16", "cuda")):
        device.warn_of_precision(precision, torch.device(place))
    assert len(caplog.records) == warned and ("bf16" in caplog.text) == warned


MANY = 2**53  # numbers: more than any address space


@pytest.mark.parametrize(
    "ask",
    [
        lambda: torch.empty(MANY),
        lambda: torch.empty(2**62),
        lambda: np.empty(MANY),
        lambda: np.empty(2**62),
        lambda: bytearray(MANY),
    ],
)
def test_memory_that_cannot_be_had_is_recognised(ask: Callable[[], object]):
    with pytest.raises((RuntimeError, MemoryError, ValueError)) as refusal:
        ask()
    assert device.lacks_memory(refusal.value)


@pytest.mark.parametrize(
    ("said", "lacking"),
    [
        ("std::bad_alloc", True),
        ("could not create a primitive", True),
        ("could not create a primitive descriptor for a matmul primitive", False),
        ("could not create a memory object", True),
        ("can't start new thread", True),
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", False),
        ("index 7 is out of bounds for dimension 0 with size 7", False),
    ],
)
def test_what_libraries_say_where_they_have_no_error_for_it(said, lacking):
    assert device.lacks_memory(RuntimeError(said)) == lacking
    assert not device.lacks_memory(KeyError(said))


@pytest.mark.parametrize(
    ("ask", "named"),
    [
        (lambda: to_bytes("left", 2**62), "env.text_length"),
        (lambda: Sight(2**50, setting(), outcome=True), "intrinsic.features"),
        (lambda: torch.empty(2**53), "replay.batch_size"),
    ],
)
def test_what_asked_for_too_much_memory_says_what_to_lower(ask: Callable[[], object], named: str):
    with pytest.raises((RuntimeError, MemoryError, OverflowError)) as refusal:
        ask()
    assert named in device.what_to_lower(refusal.value)
