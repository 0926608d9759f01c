"""Videos: files that any browser plays, and the comparison of what happened with what the world model dreamed."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped, UInt, UInt8
from PIL import Image, ImageDraw

from reverie.env.text import KIND, decode
from reverie.run.lettering import font_for, plain_font, spelled
from reverie.run.soundtrack import Track, picture
from reverie.types import ObservationSpec

Frame = UInt8[np.ndarray, "_ _ 3"]
Frames = UInt8[np.ndarray, "T _ _ 3"]

BACKGROUND, PANEL, SHADE, FAINT = (13, 17, 23), (22, 27, 34), (30, 40, 54), (72, 79, 88)
TEXT, TRUTH, DREAM, GOAL = (201, 209, 217), (121, 192, 255), (255, 166, 87), (126, 231, 135)
SHARES = (TRUTH, DREAM, GOAL, (210, 168, 255), (255, 123, 114))
MARGIN = 16
BAND, STRIP = 40, 80
"""Heights of a column of shares, and of the strip with its names."""
SMALLEST = 240
"""Frames with shorter sides are enlarged: players blur small ones."""
MOST_LETTERS, LABEL, LETTER, LINE = 40, 72, 15, 22
"""Letters of a text in one line; where lines begin, how wide a letter and how high a line is."""
AAC_RATE, LAYOUTS = 48_000, {1: "mono", 2: "stereo"}
"""Of sound in videos."""
MOST_LINES = 8
"""Vector components that are drawn; of longer vectors, those that move most."""


def write(path: Path, frames: Iterable[Frame], fps: int = 20, track: Track | None = None) -> Path:
    """Writes at least one frame as they come: an H.264 video, or an animated WebP where PyAV or its encoder is missing.

    What is in ``track`` when all frames have come is heard beside them, at its speed: in the video, or as a WAV file of
    the same name. Returns the path with its real suffix.
    """
    rate = Fraction(fps) if track is None else track.steps_per_second
    frames = (_enlarge(frame, SMALLEST) for frame in frames)
    first = next(frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        import av
        from av.codec import Codec

        Codec("h264", "w")
    except (ImportError, ValueError):
        path, rest = path.with_suffix(".webp"), [Image.fromarray(frame) for frame in frames]
        pause = round(1000 / rate)
        Image.fromarray(first).save(path, save_all=True, append_images=rest, duration=pause, loop=0, quality=90)
        if track is not None:
            track.write(path.with_suffix(".wav"))
        return path
    path = path.with_suffix(".mp4")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=rate, options={"crf": "18"})
        stream.height, stream.width = (side + side % 2 for side in first.shape[:2])  # H.264 wants even sides
        stream.pix_fmt = "yuv420p"
        sound = track and container.add_stream("aac", rate=AAC_RATE, layout=LAYOUTS[track.channels])
        for frame in itertools.chain([first], frames):
            even = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode())
        if track and sound:
            whole, second = track.whole, round(track.rate)
            for start in range(0, whole.shape[1], second):  # no frame of sound may be larger than 2 GB
                piece = np.ascontiguousarray(whole[:, start : start + second])
                heard = av.AudioFrame.from_ndarray(piece, format="fltp", layout=LAYOUTS[track.channels])
                heard.sample_rate, heard.pts, heard.time_base = second, start, Fraction(1, second)
                container.mux(sound.encode(heard))
            container.mux(sound.encode())
    return path


def side_by_side(
    truth: Shaped[np.ndarray, "T ..."],
    dream: Shaped[np.ndarray, "T ..."],
    context: int = 0,
    goal: Shaped[np.ndarray, "T ..."] | None = None,
    spec: ObservationSpec | None = None,
) -> Frames:
    """Shows what happened beside what was dreamed.

    Text (by its ``spec``) is written, and of a sound a spectrogram drawn, truth over dream and, where there is a
    manager, its goal. Images uint8 [T, H, W, 1 or 3] become panels, truth | dream | error, and the goal. Anything else,
    flattened to [T, D], becomes curves over time, the goal one of them. The first ``context`` steps were seen by the
    model, the rest it had to imagine.
    """
    films = [truth, dream] + ([] if goal is None else [goal])
    if spec is not None and spec.kind == KIND:
        return _texts(films, spec, context)
    if spec is not None and spec.silence is not None:
        return _spectrograms([picture(film, spec) for film in films], len(truth), context)
    if truth.ndim == 4 and truth.shape[-1] in (1, 3) and truth.dtype == np.uint8:
        return _panels(truth, dream, context, goal)
    lines = [None if values is None else values.reshape(len(truth), -1) for values in (truth, dream, goal)]
    return _curves(*lines, context)  # type: ignore[arg-type]


def over_shares(frames: Frames, shares: Mapping[str, Float[np.ndarray, "T"]]) -> Frames:
    """Frames over a strip with a column for each of their steps: stacked in it, the ``shares`` of whatever has a name.

    A line under the strip says which step a frame is.
    """
    steps, width = len(frames), frames.shape[2]
    image, place = Image.new("RGB", (width, STRIP), BACKGROUND), float(MARGIN)
    for name, color in zip(shares, itertools.cycle(SHARES)):
        ImageDraw.Draw(image).text((place, 4), name, color, plain_font(15))
        place += plain_font(15).getlength(name) + MARGIN
    strip, ground = np.array(image), STRIP - MARGIN
    edges = np.linspace(MARGIN, width - MARGIN, steps + 1).astype(int)
    tops = ground - np.round(BAND * np.cumsum([np.zeros(steps), *shares.values()], 0)).astype(int)
    for color, lower, upper in zip(itertools.cycle(SHARES), tops, tops[1:]):
        for t in range(steps):
            strip[upper[t] : lower[t], edges[t] : edges[t + 1]] = color
    marked = np.concatenate([frames, np.broadcast_to(strip, (steps, *strip.shape))], 1)
    for t in range(steps):
        marked[t, ground + 3 - STRIP : ground + 6 - STRIP, edges[t] : edges[t + 1]] = TEXT
    return marked


def _panels(
    truth: UInt8[np.ndarray, "T H W C"],
    dream: UInt8[np.ndarray, "T H W C"],
    context: int,
    goal: UInt8[np.ndarray, "T H W C"] | None,
) -> Frames:
    error = np.abs(truth.astype(np.int16) - dream).astype(np.uint8)
    films = [truth, dream, error] + ([] if goal is None else [goal])
    films = [[_enlarge(np.broadcast_to(x, (*x.shape[:2], 3)), SMALLEST) for x in film] for film in films]
    steps, (height, width) = len(truth), films[0][0].shape[:2]
    canvas = Image.new("RGB", (len(films) * (width + MARGIN) + MARGIN, height + 56), BACKGROUND)
    frames = []
    for t in range(steps):
        image = canvas.copy()
        draw = ImageDraw.Draw(image)
        seen = t < context
        names = ("truth", "seen" if seen else "dream", "error", "goal")
        for index, (name, film) in enumerate(zip(names, films, strict=False)):
            left = MARGIN + index * (width + MARGIN)
            color = DREAM if name == "dream" else TRUTH if name in ("truth", "seen") else TEXT
            draw.text((left, 9), name, color, plain_font(15))
            image.paste(Image.fromarray(np.ascontiguousarray(film[t])), (left, 34))
        right = MARGIN + (image.width - 2 * MARGIN) * (t + 1) / steps
        draw.rectangle((MARGIN, height + 44, image.width - MARGIN, height + 46), SHADE)
        draw.rectangle((MARGIN, height + 44, right, height + 46), TRUTH if seen else DREAM)
        frames.append(np.asarray(image))
    return np.stack(frames)


def _texts(films: list[UInt[np.ndarray, "T L"]], spec: ObservationSpec, context: int) -> Frames:
    """What was said, and what the model took it for, line under line; after the context it had to guess.

    The font is one that has the letters of what was said.
    """
    texts = [[decode(text, spec) for text in film] for film in films]
    font = font_for("".join(texts[0]), LETTER)
    written = [[textwrap.wrap(spelled(text, font), MOST_LETTERS) or [""] for text in film] for film in texts]
    lines = max(len(text) for film in written for text in film)
    block = LINE * lines + MARGIN
    size = (LABEL + LETTER * MOST_LETTERS, max(SMALLEST, len(films) * block + MARGIN))
    canvas = Image.new("RGB", size, BACKGROUND)
    frames = []
    for t in range(len(films[0])):
        image = canvas.copy()
        draw = ImageDraw.Draw(image)
        for index, ((name, color), film) in enumerate(zip(_labels(t < context), written, strict=False)):
            top = MARGIN + index * block
            draw.text((MARGIN, top), name, color, plain_font(15))
            for number, line in enumerate(film[t]):
                draw.text((LABEL, top + LINE * number), line, TEXT, font)
        frames.append(np.asarray(image))
    return np.stack(frames)


def _spectrograms(pictures: list[UInt8[np.ndarray, "_ _"]], steps: int, context: int) -> Frames:
    """What was heard, and what the model took it for, over time; the latter as far as it has come."""
    wide, high = LETTER * MOST_LETTERS - MARGIN, 104
    levels = [np.asarray(Image.fromarray(picture).resize((wide, high)), np.float32) / 255 for picture in pictures]
    edge = [wide * t // steps for t in range(steps + 1)]
    canvas = np.full((len(levels) * (high + MARGIN) + MARGIN, LABEL + wide + MARGIN, 3), BACKGROUND, np.uint8)
    place = [
        (slice(top, top + high), slice(LABEL, LABEL + wide)) for top in range(MARGIN, len(canvas) - 1, high + MARGIN)
    ]
    painted = []
    for level, color in zip(levels, (TRUTH, DREAM, GOAL), strict=False):
        painted.append((level[..., None] * np.array(color) + (1 - level[..., None]) * np.array(PANEL)).astype(np.uint8))
    heard = levels[1][:, : edge[min(context, steps)], None]
    painted[1][:, : heard.shape[1]] = heard * np.array(TRUTH) + (1 - heard) * np.array(PANEL)
    canvas[place[0]] = painted[0]
    for film, (rows, columns) in zip(painted[2:], place[2:], strict=True):
        canvas[rows, columns] = film
    frames = []
    for t in range(steps):
        frame, (rows, _) = canvas.copy(), place[1]
        frame[rows, LABEL : LABEL + edge[t + 1]] = painted[1][:, : edge[t + 1]]
        frame[MARGIN:-MARGIN, LABEL + edge[t + 1] - 1] = FAINT
        image = Image.fromarray(frame)
        draw = ImageDraw.Draw(image)
        for (name, color), (rows, _) in zip(_labels(t < context), place, strict=False):
            draw.text((MARGIN, rows.start), name, color, plain_font(15))
        frames.append(np.asarray(image))
    return np.stack(frames)


def _labels(seen: bool) -> list[tuple[str, tuple[int, int, int]]]:
    return [("truth", TRUTH), ("seen", TRUTH) if seen else ("dream", DREAM), ("goal", GOAL)]


def _curves(
    truth: Shaped[np.ndarray, "T D"],
    dream: Shaped[np.ndarray, "T D"],
    goal: Shaped[np.ndarray, "T D"] | None,
    context: int,
) -> Frames:
    """One small chart per component: the whole truth, all goals, and the dream as far as it has come."""
    truth, dream = np.nan_to_num(truth.astype(np.float64)), np.nan_to_num(dream.astype(np.float64))
    shown = np.sort(np.argsort(-truth.std(0), kind="stable")[:MOST_LINES])
    columns = 1 if len(shown) == 1 else 2
    rows = -(-len(shown) // columns)
    zoom, wide, high, top = 2, 336, 116, 44  # drawn at twice the size, then halved: smooth lines
    size = (columns * (wide + MARGIN) + MARGIN, rows * (high + MARGIN) + top)
    canvas = Image.new("RGB", (size[0] * zoom, size[1] * zoom), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    legend = [("truth", TRUTH), ("dream", DREAM), ("seen", FAINT)] + ([] if goal is None else [("goal", GOAL)])
    for place, (name, color) in enumerate(legend):
        x = MARGIN + 61 * place
        draw.text((x * zoom, 12 * zoom), name, color, plain_font(14 * zoom))
    charts = []
    for place, component in enumerate(shown):
        left = MARGIN + place % columns * (wide + MARGIN)
        box = [zoom * edge for edge in (left, top + place // columns * (high + MARGIN), wide, high)]
        aim = None if goal is None else np.nan_to_num(goal[:, component].astype(np.float64))
        charts.append(_chart(draw, box, truth[:, component], dream[:, component], aim, context, f"{component}", zoom))
    frames = []
    for t in range(len(truth)):
        for points, _ in charts:
            draw.line(points[max(0, t - 2) : t + 1], DREAM, 2 * zoom, "curve")
        image = canvas.copy()
        cursor = ImageDraw.Draw(image)
        for points, (_, upper, _, lower) in charts:
            x, y = points[t]
            cursor.line((x, upper, x, lower), FAINT, zoom)
            cursor.ellipse((x - 4 * zoom, y - 4 * zoom, x + 4 * zoom, y + 4 * zoom), DREAM)
        frames.append(np.asarray(image.reduce(zoom)))
    return np.stack(frames)


def _chart(draw, box, truth, dream, goal, context: int, name: str, zoom: int):
    """Draws what does not move of one chart; returns the dream's points and the chart's edges."""
    left, top, width, height = box
    right, bottom = left + width, top + height
    inset = 8 * zoom
    span = max(truth.max() - truth.min(), 1e-6)
    low, high = max(dream.min(), truth.min() - span), min(dream.max(), truth.max() + span)  # a lost dream is cut off
    low, high = min(low, truth.min()), max(high, truth.max())

    def points(values):
        x = np.linspace(left + inset, right - inset, len(values))
        y = bottom - inset - (np.clip(values, low, high) - low) / max(high - low, 1e-6) * (height - 2 * inset)
        return list(zip(x.tolist(), y.tolist(), strict=True))

    draw.rounded_rectangle((left, top, right, bottom), 6 * zoom, PANEL)
    if context:
        seen = points(truth)[min(context, len(truth)) - 1][0]
        draw.rounded_rectangle((left, top, seen, bottom), 6 * zoom, SHADE)
    draw.text((left + inset, top + 4 * zoom), name, FAINT, plain_font(11 * zoom))
    if goal is not None:
        draw.line(points(goal), GOAL, 2 * zoom)
    draw.line(points(truth), TRUTH, 2 * zoom, "curve")
    return points(dream), (left, top, right, bottom)


def _enlarge(frame: Frame, smallest: int) -> Frame:
    """Repeats pixels until the shorter side has at least ``smallest``."""
    factor = -(-smallest // min(frame.shape[:2]))
    return frame.repeat(factor, 0).repeat(factor, 1) if factor > 1 else frame
