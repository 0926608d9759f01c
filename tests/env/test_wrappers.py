"""What wrappers change, and what they leave alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from reverie.env.wrappers import Mute, Repeat, TimeLimit, grayscale, one_hot, resize
from reverie.errors import ConfigError
from reverie.types import ActionPart, ObservationSpec
from reverie.world.modality.sound import to_waveform


class Film:
    """Shows one bright pixel that moves right at every step, and the step as a class; it ends after ``length``."""

    def __init__(self, length: int = 7):
        self.observation = {"image": ObservationSpec((4, 8, 3), "uint8"), "step": ObservationSpec((2,), "int64", 10)}
        self.action = (ActionPart("action", 2, discrete=True),)
        self.length, self.notes = length, []

    def reset(self, seed: int):
        self.count = 0
        return self.show()

    def step(self, action: np.ndarray):
        self.count += 1
        return self.show(), float(self.count), self.count == self.length, False

    def show(self):
        image = np.zeros((4, 8, 3), np.uint8)
        image[0, self.count] = (255, 100, 50)
        return {"image": image, "step": np.array([self.count, 0])}

    def report(self):
        return {}

    def render(self):
        return self.show()["image"]

    def close(self):
        self.closed = True


ACTION = np.array([1, 0], np.float32)


def test_repeat_sums_rewards_and_stops_where_the_episode_ends():
    env = Repeat(Film(), 4, pool=False)
    env.reset(0)
    assert env.step(ACTION)[1:] == (1 + 2 + 3 + 4, False, False)
    obs, reward, terminated, truncated = env.step(ACTION)
    assert (reward, terminated, truncated) == (5 + 6 + 7, True, False) and obs["step"][0] == 7


def test_a_pooled_frame_is_the_brighter_of_the_last_two():
    env = Repeat(Film(), 4, pool=True)
    env.reset(0)
    obs, *_ = env.step(ACTION)
    assert np.flatnonzero(obs["image"][0, :, 0]).tolist() == [3, 4]
    assert obs["step"].tolist() == [4, 0]


class Talk(Film):
    """Says the number of the step in two samples of each of two channels, but for every third, which is missing."""

    def __init__(self, length: int = 7):
        super().__init__(length)
        self.observation["sound"] = ObservationSpec((2, 2), "uint8", rate=120.0, optional=True)
        self.observation["sound/present"] = ObservationSpec((), "bool", 2)

    def show(self):
        there = self.count % 3 != 2
        sound = np.full((2, 2), 128 + self.count if there else 128, np.uint8)
        return super().show() | {"sound": sound, "sound/present": np.array(there)}


def test_sounds_of_repeated_frames_are_joined_after_the_silence_of_those_that_were_not_played():
    env = Repeat(Talk(), 4, pool=True)
    assert env.observation["sound"] == ObservationSpec((2, 8), "uint8", rate=120.0, optional=True)
    assert env.observation["image"] == ObservationSpec((4, 8, 3), "uint8")
    first = env.reset(0)
    for obs, heard in (
        (first, [0, 0, 0, 0]),
        (env.step(ACTION)[0], [1, 0, 3, 4]),
        (env.step(ACTION)[0], [0, 0, 6, 7]),
    ):
        expected = np.repeat(np.array(heard, np.uint8) + np.uint8(128), 2)
        assert obs["sound"].dtype == np.uint8 and (obs["sound"] == expected).all() and obs["sound/present"]
    assert not first["image"][0, 1:].any()


def test_a_sound_that_was_missing_in_all_frames_is_missing():
    class Mumble(Talk):
        def show(self):
            return super().show() | {"sound/present": np.array(self.count > 2)}

    env = Repeat(Mumble(), 2, pool=False)
    assert [bool(obs["sound/present"]) for obs in (env.reset(0), env.step(ACTION)[0], env.step(ACTION)[0])] == [
        False,
        False,
        True,
    ]


def test_a_time_limit_truncates_and_never_terminates():
    env = TimeLimit(Film(), 3)
    for _ in range(2):
        env.reset(0)
        assert [env.step(ACTION)[2:] for _ in range(3)] == [(False, False), (False, False), (False, True)]
    ending = TimeLimit(Film(length=3), 3)
    ending.reset(0)
    assert [ending.step(ACTION) for _ in range(3)][-1][2:] == (True, True)


def test_resized_images_keep_their_brightness_and_say_their_shape():
    env = resize(Film(), 2)
    image = env.reset(0)["image"]
    assert env.observation["image"] == ObservationSpec((2, 2, 3), "uint8") and image.shape == (2, 2, 3)
    assert image.dtype == np.uint8
    assert env.observation["step"].shape == (2,)
    assert image[0, 0, 0] > image[0, 1, 0] >= image[1, 1, 0] == 0


def test_an_image_that_has_the_size_is_left_alone():
    film = Film()
    film.observation["image"] = ObservationSpec((4, 4, 3), "uint8")
    assert resize(film, 4) is film


def test_gray_is_the_luma_of_the_colours():
    env = grayscale(Film())
    image = env.reset(0)["image"]
    assert env.observation["image"] == ObservationSpec((4, 8, 1), "uint8") and image.shape == (4, 8, 1)
    assert image[0, 0, 0] == int(0.299 * 255 + 0.587 * 100 + 0.114 * 50) and image.dtype == np.uint8


def test_the_fourth_channel_is_no_transparency():
    film = Film()
    film.observation["image"] = ObservationSpec((4, 4, 4), "uint8")
    film.show = lambda: {"image": np.full((4, 4, 4), (200, 100, 50, 0), np.uint8)}  # type: ignore[method-assign]
    assert resize(film, 2).reset(0)["image"].reshape(-1, 4).tolist() == 4 * [[200, 100, 50, 0]]


def test_gray_images_can_be_resized():
    assert resize(grayscale(Film()), 2).reset(0)["image"].shape == (2, 2, 1)


@pytest.mark.parametrize("keys", [True, ["step"]])
def test_classes_become_flat_one_hots(keys):
    env = one_hot(Film(), keys)
    env.reset(0)
    step = env.step(ACTION)[0]["step"]
    assert env.observation["step"] == ObservationSpec((20,), "float32") and step.dtype == np.float32
    assert np.flatnonzero(step).tolist() == [1, 10]


def test_what_is_drawn_otherwise_stays_of_its_kind():
    film = Film()
    film.observation = {
        key: replace(spec, kind="mine", rate=2.0, optional=True) for key, spec in film.observation.items()
    }
    for changed in (resize(film, 4), grayscale(film), one_hot(film, True)):
        assert {(spec.kind, spec.rate, spec.optional) for spec in changed.observation.values()} == {("mine", 2.0, True)}


def test_one_hot_of_something_without_classes_is_refused():
    with pytest.raises(ConfigError, match=r"'image'.*integer observations are \['step'\]"):
        one_hot(Film(), ["image"])


def test_a_muted_observation_is_zero_and_missing_where_it_may_be():
    film = Film()
    film.observation["image"] = ObservationSpec((4, 8, 3), "uint8", optional=True)
    film.observation["image/present"] = ObservationSpec((), "bool", 2)
    show = film.show
    film.show = lambda: show() | {"image/present": np.array(True)}  # type: ignore[method-assign]
    env = Mute(film, ["image"])
    assert env.observation == film.observation
    for obs in (env.reset(0), env.step(ACTION)[0]):
        assert not obs["image"].any() and obs["image"].dtype == np.uint8 and not obs["image/present"]
    assert obs["step"].tolist() == [1, 0]


@pytest.mark.parametrize(("dtype", "middle"), [("uint8", 128), ("uint16", 32768), ("int16", 0), ("float32", 0)])
def test_a_muted_sound_is_silent(dtype, middle):
    for spec in (ObservationSpec((2,), dtype, rate=8000.0), ObservationSpec((2,), dtype, kind="audio")):
        film = Film()
        film.observation["sound"] = spec
        show = film.show
        film.show = lambda show=show: show() | {"sound": np.full(2, 7, dtype)}  # type: ignore[method-assign]
        muted = Mute(film, ["sound"]).reset(0)["sound"]
        assert muted.tolist() == [middle, middle] and muted.dtype == dtype
        assert not to_waveform(torch.from_numpy(muted), dtype).any()


def test_muting_something_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"env.mute names 'sound', but the observations are \['image', 'step'\]"):
        Mute(Film(), ["image", "sound"])


def test_pictures_of_another_kind_and_flags_are_left_alone():
    film = Film()
    film.observation["image"] = ObservationSpec((4, 8, 3), "uint8", kind="vector")
    film.observation["image/present"] = ObservationSpec((), "bool", 2)
    assert resize(film, 2) is film and grayscale(film) is film
    assert one_hot(film, True).observation.keys() == film.observation.keys()
    assert one_hot(film, True).observation["image/present"].dtype == "bool"
