"""What Python and the C files have to agree on: structures, arguments, and how they fail.

`bind` compares the structures with the layout that the library brings, field by field, so that an edit of one side
alone is found before anything is computed. A tensor that a kernel could not read is an error, never a wrong number.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int, c_int64, c_size_t, c_void_p

import torch
from torch import Tensor


def pointer(tensor: Tensor) -> int:
    """Where a tensor begins; the caller keeps it alive during the call. Raises ValueError where C cannot read it."""
    if tensor.is_cpu and tensor.dtype == torch.float32 and tensor.is_contiguous():
        return tensor.data_ptr()
    kind = f"{'' if tensor.is_contiguous() else 'strided '}{tensor.dtype} on {tensor.device}"
    raise ValueError(f"native kernels take contiguous float32 on a CPU, not {kind}")


def require(**shapes: tuple[Tensor, tuple[int, ...]]) -> None:
    """The kernels trust every shape: raises ValueError for a tensor of another one."""
    for name, (tensor, expected) in shapes.items():
        if tensor.shape != expected:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {expected}")


class Numbers:
    """An argument that is a tensor; None is NULL, where the kernel knows it."""

    @classmethod
    def from_param(cls, tensor: Tensor | None) -> c_void_p | None:
        return None if tensor is None else c_void_p(pointer(tensor))


# --- structures, with the fields of their namesakes in C ---


class Layer(ctypes.Structure):
    """A linear layer, with norm and SiLU where it has a scale, and the places for what comes before and after them."""

    _fields_ = [
        *((name, c_void_p) for name in ("weight", "bias", "scale", "before", "after")),
        *((name, c_int) for name in ("inputs", "outputs")),
    ]


class Sizes(ctypes.Structure):
    """Of a recurrent state-space model, and of the loop over it."""

    _fields_ = [
        *((name, c_int) for name in ("deter", "hidden", "blocks", "stoch", "classes", "batch", "steps", "block")),
        ("unimix", c_float),
    ]


class Weights(ctypes.Structure):
    """Of the loops; the posterior has no second layer."""

    _fields_ = [
        *((name, c_void_p) for name in ("from_deter", "from_deter_bias", "from_deter_scale")),
        *((name, c_void_p) for name in ("from_stoch", "from_stoch_bias", "from_stoch_scale")),
        *((name, c_void_p) for name in ("recurrent", "mix_deter", "mix_stoch", "mix_scale", "gates", "gates_bias")),
        *((name, c_void_p) for name in ("inner", "inner_bias", "inner_scale")),
        *((name, c_void_p) for name in ("second", "second_bias", "second_scale", "head", "head_bias")),
    ]


class Trace(ctypes.Structure):
    """What a step leaves behind for the way back; the kernel sets the stride."""

    _fields_ = [
        *((name, c_void_p) for name in ("deter_in", "a1", "h1", "a2", "h2", "x", "m", "gate")),
        ("stride", c_size_t),
    ]


class Gradients(ctypes.Structure):
    """What leaves the loop on the way back."""

    _fields_ = [(name, c_void_p) for name in ("a1", "a2", "x", "gate", "p", "logits", "scales")]


class Part(ctypes.Structure):
    """One component of an action."""

    _fields_ = [
        *((name, c_int) for name in ("size", "discrete")),
        *((name, c_float) for name in ("unimix", "low", "high")),
    ]


class Recipe(ctypes.Structure):
    """How a group of parameters is trained, at whatever rate."""

    _fields_ = [
        *((name, c_float) for name in ("beta1", "beta2", "eps", "agc", "floor", "clip")),
        ("adam", c_int),
    ]


STRUCTURES = (Layer, Sizes, Weights, Trace, Gradients, Part, Recipe)

# --- arguments ---

_LAYERS = (POINTER(Layer), c_int)
_CORE = (POINTER(Weights), Sizes)
_PLACES = POINTER(c_void_p)
_TARGETS = (Numbers, POINTER(c_float), c_int, Numbers)

SIGNATURES = {
    "norm_silu_forward": (Numbers, Numbers, Numbers, c_int64, c_int),
    "norm_silu_backward": (*[Numbers] * 5, c_int64, c_int, c_int),
    "mlp_forward": (*_LAYERS, Numbers, c_int64, c_int, c_int),
    "mlp_backward": (*_LAYERS, Numbers, Numbers, Numbers, _PLACES, _PLACES, _PLACES, c_int64, c_int),
    "two_hot_mean": (*_LAYERS, Numbers, c_int, Numbers, c_int, Numbers, c_int64, c_int),
    "two_hot_loss": (Numbers, *_TARGETS, Numbers, Numbers, c_int64, c_int),
    "two_hot_loss_back": (Numbers, Numbers, *_TARGETS, Numbers, Numbers, c_int64, c_int),
    "descend": (POINTER(Recipe), *[Numbers] * 4, POINTER(c_int64), c_int, c_int, *[Numbers] * 3),
    "agreement": (POINTER(Recipe), *[Numbers] * 3, c_int64, Numbers, Numbers),
    "observe_forward": (*_CORE, *[Numbers] * 6, Trace, *[Numbers] * 5),
    "observe_backward": (*_CORE, Numbers, Trace, *[Numbers] * 6, Gradients),
    "dream": (
        *(*_CORE, *_LAYERS, POINTER(Layer), Numbers, Numbers, POINTER(Part), c_int),
        *(Numbers, c_int, Numbers, c_int, *[Numbers] * 5),
    ),
}
"""Every function of the C files; all of them return 0, or 1 where they found no memory."""


class _Field(ctypes.Structure):
    """`Field` of layout.h."""

    _fields_ = [("name", ctypes.c_char_p), ("offset", c_size_t), ("size", c_size_t)]


def bind(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library, which then checks its arguments. Raises RuntimeError where it is not the one described here."""
    for structure in STRUCTURES:
        theirs, ours = _layout_of(library, structure), _layout(structure)
        if theirs != ours:
            name, differing = structure.__name__, sorted(set(theirs) ^ set(ours), key=str)
            raise RuntimeError(f"{name} in C is not {name} in bindings.py: {differing}")
    for name, arguments in SIGNATURES.items():
        function = getattr(library, name, None)
        if function is None:
            raise RuntimeError(f"{library._name} has no kernel {name}")
        function.argtypes, function.restype = arguments, c_int
    return library


def _layout(structure: type[ctypes.Structure]) -> list[tuple[str | None, int, int]]:
    """Name, place and size of every field, and the size of all."""
    places = [getattr(structure, name) for name, *_ in structure._fields_]
    fields = zip((name for name, *_ in structure._fields_), places, strict=True)
    return [*((name, place.offset, place.size) for name, place in fields), (None, ctypes.sizeof(structure), 0)]


def _layout_of(library: ctypes.CDLL, structure: type[ctypes.Structure]) -> list[tuple[str | None, int, int]]:
    """The same as the library has it."""
    symbol, found = f"layout_of_{structure.__name__}", []
    try:
        fields = (_Field * (len(structure._fields_) + 1)).in_dll(library, symbol)
    except ValueError as error:
        raise RuntimeError(f"{library._name} has no {symbol}") from error
    for field in fields:  # not beyond the last one, however many we expect
        found.append((field.name.decode() if field.name else None, field.offset, field.size))
        if not field.name:
            break
    return found


def layers_of(
    layers: Sequence[tuple[Tensor, Tensor, Tensor | None]],
    before: Sequence[Tensor] = (),
    after: Sequence[Tensor] = (),
) -> ctypes.Array[Layer]:
    """Weight [O, I], bias [O] and scale [O] of each layer, with the places for what comes before and after its norm."""
    structures, inputs = [], layers[0][0].shape[1] if layers else 0
    for i, (weight, bias, scale) in enumerate(layers):
        outputs = weight.shape[0]
        require(weight=(weight, (outputs, inputs)), bias=(bias, (outputs,)))
        if scale is not None:
            require(scale=(scale, (outputs,)))
        places = weight, bias, scale, *(own[i] if i < len(own) else None for own in (before, after))
        structures.append(Layer(*[None if place is None else pointer(place) for place in places], inputs, outputs))
        inputs = outputs
    return (Layer * len(layers))(*structures)
