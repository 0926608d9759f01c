"""The border between Python and C: structures, arguments, and a kernel that finds no memory."""

from __future__ import annotations

import ctypes
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from reverie import native
from reverie.functional import two_hot_bins
from reverie.imagine import roll
from reverie.native import bindings, build
from reverie.native.bindings import STRUCTURES, Part, bind, layers_of, pointer
from reverie.nets import two_hot
from reverie.nets.layers import MLP
from tests.core import CHOICE, dream_starts, make_level, make_world, uniform

pytestmark = pytest.mark.skipif(build.find_compiler() is None, reason="no C compiler")


# --- structures ---


def library() -> ctypes.CDLL:
    found = build.load()
    assert found is not None
    return found


def test_every_structure_is_laid_out_as_in_c():
    assert bind(library()) is library()


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: [fields[1], fields[0], *fields[2:]],
        lambda fields: fields[:-1],
        lambda fields: [*fields, ("added", ctypes.c_int)],
        lambda fields: [(fields[0][0], ctypes.c_int64), *fields[1:]],
        lambda fields: [*fields[:-1], ("renamed", fields[-1][1])],
    ],
)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_structure_that_differs_from_its_namesake_in_c_is_found(structure, change, monkeypatch):
    loaded, fields = library(), change(list(structure._fields_))
    if fields[0] == (structure._fields_[0][0], ctypes.c_int64) and structure._fields_[0][1] is ctypes.c_void_p:
        fields[0] = (fields[0][0], ctypes.c_char)
    changed = type(structure.__name__, (ctypes.Structure,), {"_fields_": fields})
    monkeypatch.setattr(bindings, "STRUCTURES", (changed,))
    with pytest.raises(RuntimeError, match=f"{structure.__name__} in C is not {structure.__name__} in bindings.py"):
        bind(loaded)


def test_kernels_with_another_layout_are_not_used(monkeypatch, caplog):
    changed = type("Part", (ctypes.Structure,), {"_fields_": Part._fields_[1:]})
    monkeypatch.setattr(bindings, "STRUCTURES", (changed,))
    build.load.cache_clear()
    try:
        assert not native.supports(torch.ones(1))
    finally:
        build.load.cache_clear()
    assert len(caplog.records) == 1 and "Part in C is not Part in bindings.py" in caplog.text


# --- arguments ---


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(2, 2).double(), torch.zeros(2, 2).t()[:1].t(), torch.zeros(2, 2, device="meta"), torch.zeros(2).int()],
)
def test_a_tensor_that_c_could_not_read_is_an_error(tensor):
    with pytest.raises(ValueError, match="contiguous float32 on a CPU"):
        pointer(tensor)
    with pytest.raises(ctypes.ArgumentError, match="contiguous float32 on a CPU"):
        native.call("norm_silu_forward", tensor, torch.ones(2), torch.ones(2, 2), 2, 2)


def test_too_few_arguments_are_an_error():
    with pytest.raises(TypeError, match="at least 5 arguments"):
        native.call("norm_silu_forward", torch.ones(2, 2))


def test_layers_that_do_not_follow_each_other_are_an_error():
    first, second = MLP(3, 4, 1).dense, MLP(5, 4, 1).dense
    with pytest.raises(ValueError, match="weight has shape"):
        layers_of([*first, *second])


CHECKED = """
import ctypes
import torch
from reverie import native
from reverie.native import layers
from reverie.native.bindings import pointer
from reverie.world.rssm_kernels import _part
for call in (
    lambda: pointer(torch.zeros(2, 2).t()[:1]),
    lambda: pointer(torch.zeros(2, 2).double()),
    lambda: native.call("norm_silu_forward", torch.zeros(2).double(), torch.ones(2), torch.ones(2), 1, 2),
    lambda: layers._Stack.forward(None, 0, torch.zeros(3, 5), torch.zeros(4, 2), torch.zeros(4)),
    lambda: _part(None),
):
    try:
        call()
    except (ValueError, TypeError, ctypes.ArgumentError) as error:
        print(type(error).__name__)
"""


def test_the_checks_stand_where_python_leaves_assertions_out():
    ran = subprocess.run([sys.executable, "-O", "-c", CHECKED], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["ValueError", "ValueError", "ArgumentError", "ValueError", "TypeError"]


# --- memory ---

LIMITED = """
#include <stdlib.h>
__attribute__((weak)) _Atomic int allowed = 1 << 30, held = 0;
static void *limited(size_t alignment, size_t size) {
    void *memory = allowed-- > 0 ? aligned_alloc(alignment, size) : NULL;
    if (memory) held++;
    return memory;
}
static void given_back(void *memory) {
    if (memory) held--;
    free(memory);
}
#define aligned_alloc limited
#define free given_back
"""
"""Allows a number of allocations, and counts those that were not given back."""


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ctypes.CDLL]:
    """Kernels that can be made to find no memory."""
    folder = tmp_path_factory.mktemp("limited")
    (folder / "limited.h").write_text(LIMITED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC", f"{shlex.join(build.find_compiler() or [])} -include {folder / 'limited.h'}")
        patch.setattr(build, "FLAGS", ["-O1", "-fPIC"])
        patch.setattr(build, "cache_folder", lambda: folder)
        build.load.cache_clear()
        yield library()
    build.load.cache_clear()


def train(network: MLP, x: Tensor) -> None:
    network(x).sum().backward()


def observe() -> None:
    rssm, batch = make_world().rssm, 30
    tokens = torch.randn(batch, 3, rssm.posterior_input.in_features - rssm.sizes.deter)
    deter, stoch = torch.zeros(batch, rssm.sizes.deter), torch.zeros(batch, rssm.sizes.stoch, rssm.sizes.classes)
    first, noise = torch.zeros(batch, 3, dtype=torch.bool), uniform(batch, 3, rssm.sizes.stoch)
    rssm.observe(tokens, torch.zeros(batch, 3, 3), first, deter, stoch, noise).logits.sum().backward()


def walk() -> None:
    world = make_world(action=CHOICE)
    worker, start = make_level(inputs=world.sizes.features, action=CHOICE, units=16), dream_starts(world)
    count = len(start.deter)
    noise, latent_noise = uniform(3, count, worker.distribution.noise), uniform(3, count, world.sizes.stoch)
    roll(world, worker, start, torch.zeros(count, 0), noise, latent_noise)


def walk_by_given_actions() -> None:
    world = make_world(action=CHOICE)
    start = dream_starts(world)
    count = len(start.deter)
    world.imagine(start, torch.zeros(count, 3, 3), uniform(3, count, world.sizes.stoch))


@torch.no_grad()
def predict() -> None:
    two_hot.predict(MLP(5, 8, 1, 63), torch.randn(60, 5), two_hot_bins(63))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("run", "kernels"),
    [
        (lambda: train(MLP(5, 8, 2), torch.randn(300, 5)), {"mlp_forward", "mlp_backward"}),
        (predict, {"two_hot_mean"}),
        (observe, {"observe_forward", "observe_backward"}),
        (walk, {"dream"}),
        (walk_by_given_actions, {"dream"}),
    ],
)
def test_a_kernel_without_memory_raises_and_gives_back_what_it_had(
    run: Callable[[], object], kernels: set[str], threads: int, limited: ctypes.CDLL
):
    allowed, held = (ctypes.c_int.in_dll(limited, name) for name in ("allowed", "held"))
    told, before = set(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for count in range(200):
            allowed.value = count
            try:
                run()
            except MemoryError as error:
                told.add(str(error).rpartition(" ")[2])
                assert held.value == 0
            else:
                break
    finally:
        allowed.value = 2**30
        torch.set_num_threads(before)
    assert held.value == 0 and count < 199
    assert told >= kernels
