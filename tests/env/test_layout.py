"""What counts as a picture, how it is held, and what a user is told of it."""

from __future__ import annotations

import logging

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from reverie.env import ENVIRONMENTS, EnvOptions, make, make_vector
from reverie.env.spaces import BadTransition, ObservationReader


def box(*shape: int, low: float = 0, high: float = 255, dtype: type = np.uint8) -> spaces.Box:
    return spaces.Box(low, high, shape, dtype)


PICTURES = {
    "channels last": (box(64, 64, 3), (64, 64, 3), "HWC"),
    "channels first": (box(3, 64, 64), (64, 64, 3), "CHW"),
    "wide, channels first": (box(3, 160, 210), (160, 210, 3), "CHW"),
    "gray frames": (box(4, 84, 84), (84, 84, 4), "CHW"),
    "gray frames last": (box(84, 84, 4), (84, 84, 4), "HWC"),
    "one gray channel first": (box(1, 84, 84), (84, 84, 1), "CHW"),
    "more planes than pixels": (box(17, 8, 8), (8, 8, 17), "CHW"),
    "more planes than pixels, last": (box(8, 8, 17), (8, 8, 17), "HWC"),
    "gray": (box(84, 84), (84, 84, 1), "HW"),
    "coloured frames": (box(4, 64, 64, 3), (64, 64, 12), "NHWC"),
    "coloured frames, channels first": (box(4, 3, 64, 64), (64, 64, 12), "NCHW"),
    "coloured frames, last": (box(64, 64, 3, 4), (64, 64, 12), "HWCN"),
    "numbers to 255": (box(64, 64, 3, dtype=np.float32), (64, 64, 3), "HWC"),
    "numbers to one": (box(64, 64, 3, high=1, dtype=np.float64), (64, 64, 3), "HWC"),
    "numbers to one, channels first": (box(3, 64, 64, high=1, dtype=np.float32), (64, 64, 3), "CHW"),
    "integers": (box(64, 48, 3, dtype=np.int64), (64, 48, 3), "HWC"),
    "bits": (box(64, 64, 3, high=1), (64, 64, 3), "HWC"),
}

NUMBERS = {
    "unknown brightness": (box(64, 64, 3, low=-1, high=1, dtype=np.float32), True),
    "endless brightness": (box(3, 64, 64, low=-np.inf, high=np.inf, dtype=np.float32), True),
    "a table": (box(50, 50, high=1, dtype=np.float32), False),
    "a board": (box(6, 7), False),
    "tiles": (box(20, 20, high=9), False),
    "a small volume": (box(4, 4, 4, 4), False),
    "features": (box(16, 16, 128, high=1, dtype=np.float32), False),
    "memory": (box(128), False),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_recognised_however_it_is_held(name):
    space, shape, axes = PICTURES[name]
    read = ObservationReader(space)
    assert (read.specs["image"].shape, read.specs["image"].dtype) == (shape, "uint8")
    space.seed(0)
    value = space.sample()
    expected = np.asarray(value, np.float64) * (255 / float(space.high.flat[0]))
    letters = "HW" + "".join(letter for letter in axes if letter in "NC")
    if set("NC") <= set(axes):
        letters = "HW" + "".join(sorted("NC", key=axes.index))
    expected = expected.transpose([axes.index(letter) for letter in letters]).reshape(shape)
    picture = read(value)["image"]
    assert picture.dtype == np.uint8 and picture.shape == shape and picture.flags.c_contiguous
    np.testing.assert_allclose(picture, expected, atol=0.5 + 1e-4)
    assert len(read.notes) == (
        name not in ("channels last", "gray frames last", "more planes than pixels, last", "bits")
    )


@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_picture_stays_a_vector_and_a_line_says_so_where_it_looks_like_one(name):
    space, surprising = NUMBERS[name]
    read = ObservationReader(space)
    assert read.specs["vector"].shape == space.shape
    assert [("looks like a picture, but is read as a vector" in note) for note in read.notes] == [True] * surprising


@pytest.mark.parametrize(
    "value", [np.full((64, 64, 3), 128.0), np.full((64, 64, 3), -1.0), np.full((64, 64, 3), np.nan)]
)
def test_numbers_far_outside_of_the_bounds_are_no_brightness(value):
    read = ObservationReader(box(64, 64, 3, high=1, dtype=np.float32))
    with pytest.raises(BadTransition, match="its bounds are 0 and 1|NaN"):
        read(value)
    assert read(np.full((64, 64, 3), 1.05))["image"].max() == 255


class Stripes(gymnasium.Env):
    """One bright row in a picture that is held channels first."""

    observation_space = box(4, 84, 84)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        picture = np.zeros((4, 84, 84), np.uint8)
        picture[2, :42] = 200
        return picture, {}


def test_the_size_of_images_leaves_channels_alone():
    ENVIRONMENTS["stripes"] = Stripes
    env = make(EnvOptions(name="stripes", size=64))
    image = env.reset(0)["image"]
    assert env.observation["image"].shape == image.shape == (64, 64, 4)
    assert (image[:31, :, 2] == 200).all() and not image[33:].any() and not image[..., [0, 1, 3]].any()


def test_what_became_of_a_space_is_said_once(caplog):
    class Once(Stripes):
        action_space = spaces.Box(5, np.inf, (1,))

    ENVIRONMENTS["said once"] = Once
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            make_vector(EnvOptions(name="said once", mode="inline"), 0, envs=2).close()
    assert [record.message for record in caplog.records] == [
        "said once: observation 'image' of shape (4, 84, 84) is read as pictures of 84 x 84 with 4 channels first",
        "said once: action 'action' is not bounded on both sides: numbers in [5, 7] are sent; "
        "for others, give its Box bounds",
    ]
