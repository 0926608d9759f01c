"""Whatever environments draw becomes one kind of picture, or is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import Env, spaces

from reverie.env.gymnasium import GymnasiumEnvironment
from reverie.env.picture import read_picture

PICTURE = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (6, 8, 3), np.uint8)
GRAY = np.repeat(PICTURE[..., :1], 3, -1)
ALPHA = np.concatenate([PICTURE, PICTURE[..., :1]], -1)


@pytest.mark.parametrize(
    ("drawn", "seen"),
    {
        "as it should be": (PICTURE, PICTURE),
        "alpha": (ALPHA, PICTURE),
        "gray": (PICTURE[..., 0], GRAY),
        "gray with an axis": (PICTURE[..., :1], GRAY),
        "channels first": (PICTURE.transpose(2, 0, 1), PICTURE),
        "lists": (PICTURE.tolist(), PICTURE),
        "large numbers": (PICTURE.astype(np.float64), PICTURE),
        "small numbers": ((PICTURE / 255).astype(np.float32), PICTURE),
        "integers": (PICTURE.astype(np.int64), PICTURE),
        "tensor": (torch.from_numpy(PICTURE), PICTURE),
        "booleans": (PICTURE > 99, (PICTURE > 99) * np.uint8(255)),
        "several": ([GRAY, PICTURE], PICTURE),
        "beyond the range": (np.array([[[-7.0, 300.0, np.nan]]]), np.array([[[0, 255, 0]]])),
        "nothing": (None, None),
        "text": ("a picture", None),
        "no frames": ([], None),
        "no pixels": (np.zeros((0, 4, 3)), None),
    }.values(),
)
def test_what_is_drawn_becomes_rgb(drawn, seen):
    picture = read_picture(drawn)
    assert (picture is None) == (seen is None)
    if picture is not None:
        assert picture.dtype == np.uint8
        np.testing.assert_array_equal(picture, seen)


@pytest.mark.parametrize("drawn", [np.zeros(5), np.zeros((9, 8, 7)), [["a", "b"]], {"rgb": 1}, 7])
def test_what_is_no_picture_is_refused(drawn):
    with pytest.raises(ValueError, match=r"render returned .*, expected uint8 \[height, width, 3\]"):
        read_picture(drawn)


@pytest.mark.parametrize(
    ("mode", "drawn", "seen"),
    [("rgb_array", PICTURE, PICTURE), ("rgb_array_list", [GRAY, PICTURE], PICTURE), ("human", PICTURE, None)],
)
def test_a_mode_that_draws_for_programs_is_used(mode, drawn, seen):
    class Painter(Env):
        observation_space = action_space = spaces.Discrete(2)
        render_mode = mode

        def render(self):
            return drawn

    picture = GymnasiumEnvironment(Painter()).render()
    assert (picture is None) == (seen is None) and (seen is None or np.array_equal(picture, seen))
