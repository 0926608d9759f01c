"""Every Gymnasium space either becomes named arrays and a flat action vector, or is refused by name."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from gymnasium import spaces

from reverie.config import load
from reverie.env import spaces as module
from reverie.env import spaces_of
from reverie.env.spaces import BadTransition, ObservationReader, read_flag, read_reward
from reverie.errors import ConfigError
from reverie.types import ObservationSpec

IMAGE = spaces.Box(0, 255, (8, 6, 3), np.uint8)

OBSERVATIONS = {
    "numbers": (spaces.Box(-1, 1, (4,), np.float32), {"vector": ((4,), "float32", 0)}),
    "doubles": (spaces.Box(-np.inf, np.inf, (2, 3), np.float64), {"vector": ((2, 3), "float32", 0)}),
    "scalar": (spaces.Box(-1, 1, (), np.float32), {"vector": ((), "float32", 0)}),
    "integers": (spaces.Box(-9, 9, (2,), np.int32), {"vector": ((2,), "float32", 0)}),
    "image": (IMAGE, {"image": ((8, 6, 3), "uint8", 0)}),
    "bytes": (spaces.Box(0, 255, (128,), np.uint8), {"vector": ((128,), "uint8", 0)}),
    "choice": (spaces.Discrete(5), {"vector": ((), "int64", 5)}),
    "choice from minus two": (spaces.Discrete(5, start=-2), {"vector": ((), "int64", 5)}),
    "choices": (spaces.MultiDiscrete([3, 7]), {"vector": ((2,), "int64", 7)}),
    "choices from one": (spaces.MultiDiscrete([3, 7], start=[1, 1]), {"vector": ((2,), "int64", 7)}),
    "bits": (spaces.MultiBinary(3), {"vector": ((3,), "int64", 2)}),
    "nested": (
        spaces.Dict({"eye": spaces.Dict({"left": IMAGE}), "touch": spaces.Box(0, 1, (2,), np.float32)}),
        {"eye/left": ((8, 6, 3), "uint8", 0), "touch": ((2,), "float32", 0)},
    ),
    "tuple": (spaces.Tuple((spaces.Discrete(2), IMAGE)), {"0": ((), "int64", 2), "1": ((8, 6, 3), "uint8", 0)}),
    "empty part": (
        spaces.Dict({"no": spaces.Box(0, 1, (0,), np.float32), "yes": spaces.Discrete(2)}),
        {"yes": ((), "int64", 2)},
    ),
    "bits of a box": (spaces.Box(0, 1, (3,), np.bool_), {"vector": ((3,), "bool", 2)}),
    "samples": (spaces.Box(-32768, 32767, (5,), np.int16), {"vector": ((5,), "int16", 0)}),
    "shorts": (spaces.Box(0, 65535, (5,), np.uint16), {"vector": ((5,), "uint16", 0)}),
    "halves": (spaces.Box(-1, 1, (5,), np.float16), {"vector": ((5,), "float16", 0)}),
    "text": (spaces.Text(9), {"text": ((9,), "uint8", 0, "text")}),
    "text part": (
        spaces.Dict({"say": spaces.Text(9), "yes": spaces.Discrete(2)}),
        {"say": ((9,), "uint8", 0, "text"), "yes": ((), "int64", 2)},
    ),
}


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_an_observation_becomes_named_arrays_of_the_promised_shape(name):
    space, expected = OBSERVATIONS[name]
    space.seed(0)
    read = ObservationReader(space)
    assert read.specs == {key: ObservationSpec(*spec) for key, spec in expected.items()}
    for _ in range(10):
        arrays = read(space.sample())
        assert arrays.keys() == read.specs.keys()
        for key, spec in read.specs.items():
            assert arrays[key].shape == spec.shape and arrays[key].dtype == spec.dtype
            assert not spec.classes or (arrays[key].min() >= 0 and arrays[key].max() < spec.classes)


def test_classes_begin_at_zero_wherever_the_space_begins():
    assert ObservationReader(spaces.Discrete(5, start=-2))(-2)["vector"] == 0
    read = ObservationReader(spaces.MultiDiscrete([3, 7], start=[1, 4]))
    np.testing.assert_array_equal(read(np.array([3, 4]))["vector"], [2, 0])


@pytest.mark.parametrize("space", [spaces.Sequence(spaces.Discrete(2)), spaces.Dict({"a": spaces.Graph(IMAGE, None)})])
def test_an_unsupported_observation_space_is_refused_by_name(space):
    with pytest.raises(ConfigError, match=r"(Sequence|Graph).* is not supported"):
        ObservationReader(space)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict({"a/b": spaces.Discrete(2), "a": spaces.Dict({"b": spaces.Discrete(3)})}),
        spaces.Dict({"a": spaces.Tuple((spaces.Discrete(2),)), "a/0": spaces.Discrete(3)}),
        spaces.Dict({"": spaces.Discrete(2), "vector": spaces.Discrete(3)}),
    ],
)
def test_two_observations_of_one_name_are_refused(space):
    with pytest.raises(ConfigError, match="two observations called"):
        ObservationReader(space)


@pytest.mark.parametrize(
    ("space", "kinds"), [(spaces.Box(0, 1, (0,)), {}), (spaces.Dict({"say": spaces.Text(3)}), {"say": None})]
)
def test_a_space_of_which_nothing_remains_is_refused(space, kinds):
    with pytest.raises(ConfigError, match="holds nothing that can be used"):
        ObservationReader(space, kinds)


def test_a_kind_is_what_the_user_says_or_the_space():
    sound = spaces.Box(0, 255, (512,), np.uint8)
    sound.kind, sound.rate = "audio", 30_720
    shown = spaces.Dict({"sound": sound, "message": spaces.Box(0, 255, (80,), np.uint8), "eye": IMAGE})
    specs = ObservationReader(shown, {"message": "text", "eye": "vector"}).specs
    assert specs == {
        "sound": ObservationSpec((512,), "uint8", kind="audio", rate=30_720),
        "message": ObservationSpec((80,), "uint8", kind="text"),
        "eye": ObservationSpec((8, 6, 3), "uint8", kind="vector"),
    }
    assert ObservationReader(shown, {"eye": None, "sound": "vector"}).specs.keys() == {"sound", "message"}
    assert ObservationReader(sound, {"vector": "noise"}).specs["vector"].kind == "noise"


@pytest.mark.parametrize("rate", [-8000, math.nan, math.inf, 1e10, 1e-9, "16k", [8000], None])
def test_a_rate_that_no_sound_can_have_is_refused_by_name(rate):
    sound = spaces.Box(-1, 1, (64,))
    sound.rate = rate
    complaint = (
        rf"observation 'hear': rate = {re.escape(repr(rate))} should be a positive number, of samples per second"
    )
    with pytest.raises(ConfigError, match=complaint):
        ObservationReader(spaces.Dict({"hear": sound}))


@pytest.mark.parametrize("rate", [0, 0.3, 8000, np.float32(8000), np.int64(8000), 1e9])
def test_a_rate_may_be_any_positive_number_or_unknown(rate):
    sound = spaces.Box(-1, 1, (64,))
    sound.rate = rate
    assert ObservationReader(sound).specs["vector"].rate == pytest.approx(float(rate))


def test_a_sound_that_is_too_loud_is_pointed_out_once_and_a_vector_is_not(caplog):
    module._warn_of_loudness.cache_clear()
    parts = {key: spaces.Box(-np.inf, np.inf, (2,)) for key in ("hear", "soft", "feel")}
    parts["hear"].optional = True
    read = ObservationReader(spaces.Dict(parts), {"hear": "audio", "soft": "audio"})
    for loud in ([1.0, -1.0], [-1.1, 0.0], [1e30, 0.0], None):
        read({"hear": loud, "soft": [1.0, -1.0], "feel": [3.0, -3.0]})
    (record,) = caplog.records
    assert "the sound 'hear' has samples beyond -1 and 1, which are cut off" in record.getMessage()


def test_what_has_a_kind_of_its_own_is_no_picture():
    channels_first = spaces.Box(0, 1, (3, 16, 16))
    assert ObservationReader(channels_first).specs["image"].shape == (16, 16, 3)
    read = ObservationReader(channels_first, {"image": "volume"})
    assert read.specs["image"] == ObservationSpec((3, 16, 16), "float32", kind="volume") and read.notes == []


def test_the_kind_of_something_that_is_not_there_is_refused_and_leaving_it_out_is_noted():
    with pytest.raises(ConfigError, match=r"env.kinds names 'mission', but the observations are \['vector'\]"):
        ObservationReader(spaces.Discrete(2), {"mission": "text"})
    read = ObservationReader(spaces.Discrete(2), {"mission": None})
    assert read.specs.keys() == {"vector"}
    assert read.notes == ["there is no observation 'mission' for env.kinds to leave out"]


@pytest.mark.parametrize("preset", ["pixels", "minigrid"])
def test_a_preset_that_leaves_a_text_out_serves_an_environment_without_one(preset):
    size = ["env.size=0", 'env.kwargs={"image": 32, "vector": false}']
    assert spaces_of(load(preset, ["env.name=pinpad/vec-4", *size]).env)[0].keys() == {"image"}


@pytest.mark.parametrize("absent", [{}, {"sound": None}])
def test_an_optional_observation_says_whether_it_is_there(absent):
    sound = spaces.Box(-32768, 32767, (2,), np.int16)
    sound.optional = True
    read = ObservationReader(spaces.Dict({"sound": sound, "yes": spaces.Discrete(2)}))
    assert read.specs["sound"].optional and read.specs["sound/present"] == ObservationSpec((), "bool", 2)
    there, missing = read({"sound": np.array([1, -2], np.int16), "yes": 1}), read({"yes": 1} | absent)
    assert there["sound"].tolist() == [1, -2] and bool(there["sound/present"]) is True
    assert missing["sound"].tolist() == [0, 0] and bool(missing["sound/present"]) is False
    assert missing["sound"].dtype == np.int16 and missing["sound/present"].dtype == bool and missing["yes"] == 1
    with pytest.raises(BadTransition, match="has the keys"):
        read({"sound": np.zeros(2, np.int16)})


@pytest.mark.parametrize("nest", [lambda part: spaces.Dict({"part": part}), lambda part: spaces.Tuple([part])])
def test_a_part_of_several_observations_may_be_missing_as_a_whole(nest):
    sound = spaces.Box(0, 255, (2,), np.uint8)
    sound.rate = 8000.0
    part = spaces.Dict({"sound": sound, "more": spaces.Tuple([spaces.Discrete(3), spaces.Text(4)])})
    part.optional = True
    space = nest(part)
    head, wrap = (
        ("part", lambda value: {"part": value}) if isinstance(space, spaces.Dict) else ("0", lambda value: (value,))
    )
    read = ObservationReader(space)
    flags = {key for key, spec in read.specs.items() if spec.dtype == "bool"}
    assert flags == {f"{head}/{key}/present" for key in ("sound", "more/0", "more/1")}
    there = read(wrap({"sound": np.array([3, 4], np.uint8), "more": (2, "yes")}))
    assert (
        all(there[flag] for flag in flags)
        and there[f"{head}/sound"].tolist() == [3, 4]
        and there[f"{head}/more/0"] == 2
    )
    for missing in (wrap(None), type(wrap(None))()):  # or left out
        seen = read(missing)
        assert not any(seen[flag] for flag in flags)
        assert seen[f"{head}/sound"].tolist() == [128, 128] and seen[f"{head}/more/0"] == 0
    with pytest.raises(BadTransition, match="has the keys"):
        read(wrap({"sound": np.zeros(2, np.uint8)}))


def test_what_is_optional_inside_of_something_may_be_missing_by_itself():
    sound = spaces.Box(-1, 1, (2,))
    sound.optional = True
    read = ObservationReader(spaces.Dict({"in": spaces.Dict({"sound": sound}), "pair": spaces.Tuple([sound])}))
    seen = read({"in": {}, "pair": (None,)})
    assert not seen["in/sound/present"] and not seen["pair/0/present"]
    with pytest.raises(BadTransition, match="the observation has the keys"):
        read({"pair": (None,)})


def test_integers_may_come_in_a_wider_dtype_as_long_as_they_fit():
    read = ObservationReader(spaces.Box(-32768, 32767, (2,), np.int16))
    assert read([7, -32768])["vector"].tolist() == [7, -32768]
    with pytest.raises(BadTransition, match="numbers from 0 to 32768, which are no int16"):
        read([0, 32768])


@pytest.mark.parametrize(
    ("space", "value", "message"),
    [
        (spaces.Box(-1, 1, (2,)), [0.0, math.inf], "NaN or infinity"),
        (spaces.Box(-1, 1, (2,), np.float64), np.zeros(3), r"shape \(3,\), expected \(2,\)"),
        (spaces.Box(-1, 1, (2,)), "xy", "dtype <U2, expected float32"),
        (spaces.Box(-1, 1, (2,)), None, "dtype object"),
        (IMAGE, np.zeros((8, 6, 3), np.float32), "dtype float32, expected uint8"),
        (spaces.Discrete(3), 3, "outside of its 3 classes"),
        (spaces.Discrete(3), 1.5, "dtype float64, expected int64"),
        (spaces.Dict({"a": spaces.Dict({"b": spaces.Discrete(2)})}), {"a": {"c": 1}}, "'a' has the keys"),
        (spaces.Dict({"a": spaces.Discrete(2)}), 3, "is int, expected a dict"),
        (spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2))), (1,), "'1' is missing"),
    ],
)
def test_what_does_not_fit_the_space_is_refused(space, value, message):
    with pytest.raises(BadTransition, match=message):
        ObservationReader(space)(value)


def test_large_but_finite_numbers_are_welcome():
    assert ObservationReader(spaces.Box(-np.inf, np.inf, (2,)))([3e38, -3e38])["vector"][0] == np.float32(3e38)


def test_rewards_and_flags_are_plain_numbers_and_bools():
    assert [read_reward(reward) for reward in (1, np.float32(2), np.array([3]), True)] == [1.0, 2.0, 3.0, 1.0]
    assert read_flag("done", np.True_) is True and read_flag("done", False) is False
    for reward in (None, "1", [1.0], np.zeros(2), math.nan, -math.inf, 1e39):
        with pytest.raises(BadTransition, match="reward is"):
            read_reward(reward)
    with pytest.raises(BadTransition, match="terminated is 1"):
        read_flag("terminated", 1)
