"""Video files that can be read back, and what the comparison of truth and dream shows."""

from __future__ import annotations

import json
import sys
import wave

import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image

from reverie.env.text import encode, text_spec, to_bytes
from reverie.run import video
from reverie.run.soundtrack import Track, empty_track, mono, picture, track_of, with_rates
from reverie.types import ObservationSpec
from reverie.world.modality.config import ModalityOptions
from tests.env.test_tokens import word_tokenizer

TEXT = ObservationSpec((64,), "uint8", kind="text")
RATE, SAMPLES = 8_000, 800
TONE = ObservationSpec((SAMPLES,), "int16", kind="audio", rate=RATE)


def movie(steps: int = 6, height: int = 64, width: int = 64) -> np.ndarray:
    """A bright square that walks over a dark ground."""
    frames = np.full((steps, height, width, 3), 20, np.uint8)
    for t in range(steps):
        frames[t, 8:24, 4 * t : 4 * t + 16] = (230, 40, 40)
    return frames


@pytest.mark.parametrize(("height", "width", "size"), [(64, 64, (256, 256)), (300, 251, (300, 252)), (241, 7, None)])
def test_an_mp4_holds_every_frame(tmp_path, height, width, size):
    av = pytest.importorskip("av")
    path = video.write(tmp_path / "media" / "a.mp4", movie(6, height, width), fps=10)
    assert path == tmp_path / "media" / "a.mp4"
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert stream.codec_context.name == "h264"
        assert float(stream.average_rate) == 10
    assert len(frames) == 6
    if size:
        assert frames[0].shape == (*size, 3)
        red = frames[5][int(16 * size[0] / height), int(28 * size[1] / width)]
        assert red[0] > 150 > red[1]


@pytest.mark.parametrize("missing", ["package", "encoder"])
def test_without_pyav_or_its_encoder_an_animated_webp_is_written(tmp_path, monkeypatch, missing):
    if missing == "package":
        monkeypatch.setitem(sys.modules, "av", None)
    else:
        av = pytest.importorskip("av")
        encoder = av.codec.Codec  # which says that there is none of this name
        monkeypatch.setattr(av.codec, "Codec", lambda name, mode: encoder("no such encoder", mode))
    path = video.write(tmp_path / "a.mp4", movie(), fps=20)
    assert path == tmp_path / "a.webp"
    assert not (tmp_path / "a.mp4").exists()
    with Image.open(path) as image:
        assert (image.n_frames, image.size) == (6, (256, 256))


def test_images_become_truth_dream_and_error():
    truth = movie()
    dream = truth.copy()
    dream[3, 40, 40] = 255
    frames = video.side_by_side(truth, dream, context=2)
    assert frames.shape == (6, 256 + 56, 3 * 256 + 4 * video.MARGIN, 3)
    top, lefts = 34, [video.MARGIN + k * (256 + video.MARGIN) for k in range(3)]
    panels = [frames[3, top : top + 256 : 4, left : left + 256 : 4] for left in lefts]
    np.testing.assert_array_equal(panels[0], truth[3])
    np.testing.assert_array_equal(panels[1], dream[3])
    assert panels[2].sum(-1).nonzero()[0].tolist() == [40]
    assert (panels[2][40, 40] == 235).all()


def test_a_goal_is_a_fourth_panel_and_a_third_line():
    truth, dream, goal = movie(), movie()[::-1], movie()[:, ::-1]
    frames = video.side_by_side(truth, dream, goal=goal)
    left = video.MARGIN + 3 * (256 + video.MARGIN)
    np.testing.assert_array_equal(frames[3, 34 : 34 + 256 : 4, left : left + 256 : 4], goal[3])
    lines = np.linspace(0, 1, 60, dtype=np.float32).reshape(30, 2)
    plain, aimed = (video.side_by_side(lines, lines, goal=goal)[0] for goal in (None, 1 - lines))
    assert colored(aimed, video.GOAL) > 100 > colored(plain, video.GOAL)


def test_gray_images_are_shown_too():
    assert video.side_by_side(movie()[..., :1], movie()[..., :1]).shape[-1] == 3


def colored(frame: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((np.abs(frame.astype(int) - color).sum(-1) < 12).sum())


def test_vectors_become_curves_that_the_dream_draws_step_by_step():
    t = np.linspace(0, 6, 30)
    truth = np.stack([np.sin(t), np.cos(t), t, -t], 1).astype(np.float32)
    frames = video.side_by_side(truth, truth + 0.3, context=5)
    assert frames.dtype == np.uint8
    assert len(frames) == 30
    drawn = [colored(frame, video.DREAM) for frame in frames]
    assert drawn[29] > 2 * drawn[10] > 0
    assert colored(frames[0], video.TRUTH) > 300
    assert colored(frames[0], video.SHADE) > colored(video.side_by_side(truth, truth)[0], video.SHADE)


@pytest.mark.parametrize(
    "shape", [(1, 1), (2, 779), (5, 3), (3,), (4, 2, 3)], ids=lambda shape: "x".join(map(str, shape))
)
def test_vectors_of_any_size_can_be_drawn(tmp_path, shape):
    values = np.random.Generator(np.random.PCG64(0)).normal(size=shape).astype(np.float32)
    frames = video.side_by_side(values, -values, context=99)
    assert len(frames) == shape[0]
    assert frames.shape[1] < 700


def test_constant_and_lost_predictions_can_be_drawn():
    truth = np.zeros((5, 2), np.float32)
    dream = np.array([[0, 0], [1, np.nan], [1e30, np.inf], [-1e30, -np.inf], [0, 0]], np.float32)
    assert video.side_by_side(truth, dream).shape[0] == 5


def test_a_film_takes_its_frames_one_by_one(tmp_path, monkeypatch):
    pytest.importorskip("av")
    shown, encoded = [], []
    enlarge = video._enlarge
    monkeypatch.setattr(
        video, "_enlarge", lambda frame, smallest: encoded.append(len(shown)) or enlarge(frame, smallest)
    )

    def frames():
        for frame in movie():
            shown.append(1)
            yield frame

    assert video.write(tmp_path / "a.mp4", frames()) == tmp_path / "a.mp4"
    assert encoded == [1, 2, 3, 4, 5, 6]  # none waited for the next


def test_texts_are_written_and_the_dream_is_told_from_what_was_seen():
    said = np.stack([to_bytes(text, 120) for text in ("", "go left", "빨간 공", "a word and " * 9)])
    dreamt = said.copy()
    dreamt[3] = to_bytes("go left", 120)
    frames = video.side_by_side(said, dreamt, context=2, spec=TEXT)
    with_goal = video.side_by_side(said, dreamt, context=2, goal=said, spec=TEXT)
    assert frames.shape[0] == with_goal.shape[0] == 4 and frames.shape[1] >= video.SMALLEST
    lines = video.LINE * 3
    first, block = video.MARGIN, lines + video.MARGIN
    upper, lower, goal = (with_goal[:, first + k * block : first + k * block + lines] for k in range(3))
    assert (goal[1] == video.GOAL).all(-1).any() and not (frames[1] == video.GOAL).all(-1).any()
    words = slice(video.LABEL, None)
    assert not (upper[0, :, words] != video.BACKGROUND).any()  # nothing was said
    assert (upper[1, :, words] == lower[1, :, words]).all() and (upper[3, :, words] != lower[3, :, words]).any()
    labels = slice(0, video.LABEL)
    assert (lower[0, :, labels] == lower[1, :, labels]).all() and (lower[2, :, labels] != lower[1, :, labels]).any()
    assert (frames[3] == video.DREAM).all(-1).any() and not (frames[1] == video.DREAM).all(-1).any()
    assert len({frame.tobytes() for frame in frames}) == 4


def test_tokens_are_written_as_the_text_that_they_are():
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    spec = text_spec(spaces.Text(9), 6, json.dumps(word_tokenizer()))
    ids = np.stack([encode(text, spec, "say", "") for text in ("", "go to the red ball")])
    spelled = np.stack([to_bytes(text, 120) for text in ("", "go to the red ball")])
    assert (video.side_by_side(ids, ids, spec=spec) == video.side_by_side(spelled, spelled, spec=TEXT)).all()


def test_the_longest_text_has_room(tmp_path):
    said = np.full((1, 512), ord("W"), np.uint8)
    frames = video.side_by_side(said, said, spec=TEXT)
    assert (frames[0, :, -1] == video.BACKGROUND).all()


# --- sound ---


def tones(*pitches: float) -> np.ndarray:
    """A step of each pitch, half as loud as can be; zero is silence: [T, SAMPLES]."""
    time = np.arange(SAMPLES) / RATE
    return np.stack([16_000 * np.sin(2 * np.pi * pitch * time) for pitch in pitches]).astype(np.int16)


def test_a_picture_of_sound_is_bright_where_it_is_heard_and_high_pitch_is_on_top():
    drawn = picture(tones(300, 300, 0, 0, 2500, 2500), TONE)
    early, pause, late = (drawn[:, part] for part in np.array_split(np.arange(drawn.shape[1]), 3))
    assert early.max() > 200 and late.max() > 200 and pause[:, 3:-3].max() == 0
    assert early.max(1).argmax() > late.max(1).argmax() + 20


def test_sounds_are_drawn_over_time_and_the_dream_as_far_as_it_has_come():
    truth, dream = tones(*[500] * 8), tones(*[0] * 2, *[1500] * 6)
    frames = video.side_by_side(truth, dream, context=2, spec=TONE)
    aimed = video.side_by_side(truth, dream, context=2, goal=truth, spec=TONE)
    assert len(frames) == 8 and aimed.shape[1] > frames.shape[1]

    def orange(frame: np.ndarray) -> int:
        heard = frame[:, video.LABEL :].astype(int)
        return int((heard[..., 0] > heard[..., 2] + 100).sum())

    assert orange(frames[1]) == 0 and orange(frames[7]) > orange(frames[4]) > orange(frames[2]) > 100
    truth_is, _, goal_is = np.split(aimed[0, : 3 * 120, video.LABEL :].astype(int), 3)
    assert (truth_is[..., 2] > 200).sum() > 1000 and not (truth_is[..., 1] > truth_is[..., 2] + 60).any()
    assert (goal_is[..., 1] > goal_is[..., 2] + 60).sum() > 1000


def test_a_track_has_a_channel_for_each_film_and_lasts_as_long_as_its_steps():
    observation = {"image": ObservationSpec((8, 8, 3), "uint8"), "sound": TONE}
    left, right = tones(500, 0, 500), tones(0, 0, 1500)
    track = track_of(observation, {"sound": left}, {"sound": right})
    assert track is not None and track.whole.shape == (2, 3 * SAMPLES) and track.steps_per_second == 10
    np.testing.assert_allclose(track.whole[0], left.flatten() / 32768, atol=1e-6)
    assert not track.whole[1, : 2 * SAMPLES].any() and track.whole[1, 2 * SAMPLES :].any()
    assert track_of({"image": observation["image"]}, {}) is None
    both = np.stack([left, right], 1)  # channels become one
    np.testing.assert_allclose(mono(both), (mono(left) + mono(right)) / 2, atol=1e-6)


def test_several_sounds_are_heard_at_once(tmp_path):
    coarse = ObservationSpec((2, SAMPLES // 2), "uint8", kind="audio", rate=RATE / 2)
    hum = ObservationSpec((1,), "int16", kind="audio", rate=1.0)  # which no player plays
    observation = {"a_coarse": coarse, "bell": TONE, "hum": hum}
    bell, low = tones(700, 0, 0), np.full((3, 2, SAMPLES // 2), 192, np.uint8)
    film = {"a_coarse": low, "bell": bell, "hum": np.zeros((3, 1), np.int16)}
    track = track_of(observation, film)
    assert track is not None and (track.rate, track.samples, track.sounds) == (RATE, SAMPLES, ("a_coarse", "bell"))
    np.testing.assert_allclose(track.whole[0], (mono(bell) + 0.5) / 2, atol=1e-6)
    played = empty_track(observation)
    assert played is not None
    for t in range(3):  # as an episode is filmed
        played.hear({key: value[t : t + 1] for key, value in film.items()})
    np.testing.assert_allclose(played.whole, track.whole, atol=1e-6)


def test_a_sound_without_a_rate_is_played_as_the_agent_reads_it_and_that_is_said_once(caplog):
    observation = {"image": ObservationSpec((8, 8, 3), "uint8"), "bell": TONE}
    unknown = ObservationSpec((SAMPLES,), "int16", kind="audio")
    assert with_rates(observation, {}) == observation and not caplog.records
    for _ in range(2):
        rates = with_rates(observation | {"buzz": unknown}, {"audio": ModalityOptions(options={"rate": 4_000})})
    assert rates["bell"] == TONE and rates["buzz"].rate == 4_000
    assert with_rates({"whisper": unknown}, {})["whisper"].rate == 16_000
    assert [record.args[:2] for record in caplog.records] == [("buzz", 4_000), ("whisper", 16_000)]
    assert "world.modalities.audio.options.rate" in caplog.text


@pytest.mark.parametrize("package", ["av", "none"])
@pytest.mark.parametrize(
    ("rate", "samples", "heard"),
    [
        (1e-3, 1, False),
        (0.3, 1, False),
        (0.3, 64, False),
        (20, 1, False),
        (100, 1, True),
        (100, 5_999, True),
        (384_000, 1_601, True),
        (8_000, 1, False),
        (1_000, 100_000, False),
        (1e9, 64, False),
    ],
)
def test_a_film_outlives_every_rate_and_length_of_sound(tmp_path, monkeypatch, rate, samples, heard, package):
    if package == "av":
        pytest.importorskip("av")
    else:
        monkeypatch.setitem(sys.modules, "av", None)
    spec = ObservationSpec((samples,), "int16", kind="audio", rate=rate)
    assert (empty_track({"sound": spec}) is not None) == heard
    sound = np.random.Generator(np.random.PCG64(0)).integers(-9000, 9000, (3, samples)).astype(np.int16)
    frames, track = video.side_by_side(sound, sound, spec=spec), track_of({"sound": spec}, {"sound": sound})
    path = video.write(tmp_path / "a.mp4", frames, track=track)
    assert path.stat().st_size and (track is not None) == heard
    assert (tmp_path / "a.wav").exists() == (heard and package == "none")


def test_a_long_track_comes_in_pieces_that_fit_together(tmp_path):
    av = pytest.importorskip("av")
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(int(3.5 * RATE)) / RATE)).astype(np.float32)
    path = video.write(tmp_path / "a.mp4", movie(7), track=Track(RATE, RATE // 2, 1, [tone[None]]))
    with av.open(str(path)) as container:
        decoded = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], 1)[0]
    wanted = np.interp(np.arange(3 * 48_000) / 48_000, np.arange(len(tone)) / RATE, tone)
    assert np.corrcoef(decoded[: len(wanted)], wanted)[0, 1] > 0.99


@pytest.mark.parametrize("channels", [1, 2])
def test_a_video_has_its_sound_at_the_same_time(tmp_path, channels):
    av = pytest.importorskip("av")
    heard = mono(tones(0, 0, 0, 700, 700, 0, 0, 0, 0, 0))
    track = Track(RATE, SAMPLES, channels, [np.stack([heard] * channels)])
    path = video.write(tmp_path / "a.mp4", movie(10), fps=99, track=track)
    with av.open(str(path)) as container:
        assert float(container.streams.video[0].average_rate) == 10
        sound = container.streams.audio[0]
        assert (sound.codec_context.name, sound.codec_context.channels) == ("aac", channels)
        decoded = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], 1)
    loudness = np.abs(decoded[0])[:48_000].reshape(10, -1).mean(1)
    assert (loudness[3:5] > 0.2).all() and (np.delete(loudness, [3, 4]) < 0.03).all()


def test_without_pyav_the_sound_is_a_file_beside_the_film(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    track = Track(RATE, SAMPLES)
    frames = (
        track.heard.append(mono(step[None])[None]) or frame
        for step, frame in zip(tones(700, 0, 700), movie(3), strict=True)
    )
    assert video.write(tmp_path / "a.mp4", frames, track=track) == tmp_path / "a.webp"  # which is heard as it is filmed
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (1, RATE, 2)
        samples = np.frombuffer(file.readframes(10**6), "<i2")
    assert np.abs(samples - tones(700, 0, 700).flatten()).max() <= 1
    with Image.open(tmp_path / "a.webp") as image:
        image.load()
        assert image.info["duration"] == 100


def test_shares_stand_in_columns_under_the_frames_and_a_line_says_which():
    frames, shares = movie(4), {"task": np.array([0.0, 1.0, 0.25, 0.0]), "new": np.array([0.0, 0.0, 0.75, 0.0])}
    marked = video.over_shares(frames, shares)
    assert marked.shape == (4, 64 + video.STRIP, 64, 3) and (marked[:, :64] == frames).all()
    width, ground = (64 - 2 * video.MARGIN) // 4, 64 + video.STRIP - video.MARGIN
    task, new = video.SHARES[:2]
    for t, heights in enumerate([(0, 0), (40, 0), (10, 30), (0, 0)]):
        column = marked[0, ground - video.BAND : ground, video.MARGIN + width * t]
        assert tuple((column == color).all(-1).sum() for color in (task, new)) == heights
    assert (marked[0, ground - 1, video.MARGIN + 2 * width] == task).all()  # the first stands below
    for t, frame in enumerate(marked):
        line = (frame[ground + 3] == video.TEXT).all(-1)
        assert np.flatnonzero(line).tolist() == list(range(video.MARGIN + width * t, video.MARGIN + width * (t + 1)))


def test_more_steps_than_pixels_and_shares_thinner_than_one_are_drawn():
    frames = np.zeros((400, 240, 240, 3), np.uint8)
    assert video.over_shares(frames, {"a": np.full(400, 0.001), "b": np.full(400, 0.999)}).shape[1] == 240 + video.STRIP
