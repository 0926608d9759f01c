"""What holds for every modality: shapes, gradients, rows that are alone, and a batch that can be learned by heart."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from reverie.env.text import to_bytes, to_text
from reverie.errors import ConfigError
from reverie.types import Latent, ObservationSpec
from reverie.world.modality import MODALITY_CONFIGS, Modality, Prepares, modalities, text
from reverie.world.modality.audio import AudioWriter
from reverie.world.modality.config import ModalityConfig, ModalityOptions
from reverie.world.modality.sound import MelSpectrogram, from_waveform, mel, mel_filters, to_waveform
from reverie.world.modality.text import TextReader, TextWriter
from reverie.world.sizes import Sizes
from tests.core import close, draw, make_batch, make_world

SIZES = Sizes(deter=16, hidden=8, classes=4, units=32, depth=4, embed=16, stoch=4, blocks=2, layers=2)

TEXTS = ["", "go to the red ball", "빨간 공", "🙂🎈", "x" * 24, "cut: 빨간 공으로 가라"]
TONES = [(0.0, 1), (1.0, 300), (0.5, 300), (1.0, 2000), (0.1, 5000), (1.0, 7000)]
SPAN = torch.arange(640) / 16_000


def say(*texts: str, length: int = 24) -> Tensor:
    return torch.stack([torch.from_numpy(to_bytes(each, length)) for each in texts])


def ids() -> Tensor:
    rows = [[], [1], [300, 399, 2], [7, 7, 7, 7, 7], [2, 300], [399]]
    return torch.tensor([row + [0] * (5 - len(row)) for row in rows], dtype=torch.uint16)


def tones() -> Tensor:
    waves = [loudness * torch.sin(2 * math.pi * pitch * SPAN) for loudness, pitch in TONES]
    return from_waveform(torch.stack(waves), "int16")


def colours() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (6, 1, 1, 3), generator=generator).to(torch.uint8).expand(6, 8, 8, 3)


@dataclass(frozen=True)
class Case:
    keys: dict[str, ObservationSpec]
    obs: Callable[[], dict[str, Tensor]]
    options: dict[str, object]


TOKENS = ObservationSpec((5,), "uint16", 400, kind="text", tokenizer="{}")
SOUND = ObservationSpec((640,), "int16", kind="audio", rate=16_000)
CASES = {
    "image": Case({"see": ObservationSpec((8, 8, 3), "uint8")}, lambda: {"see": colours()}, {}),
    "text": Case({"say": ObservationSpec((24,), "uint8", kind="text")}, lambda: {"say": say(*TEXTS)}, {}),
    "text, odd patches": Case(
        {"say": ObservationSpec((24,), "uint8", kind="text"), "hear": ObservationSpec((7,), "uint8", kind="text")},
        lambda: {"say": say(*TEXTS), "hear": say(*TEXTS, length=7)},
        {"patch": 5, "layers": 2, "width": 24, "heads": 3},
    ),
    "text, tokens": Case(
        {"say": TOKENS, "hear": ObservationSpec((7,), "uint8", kind="text")},
        lambda: {"say": ids(), "hear": say(*TEXTS, length=7)},
        {},
    ),
    "text, patches of tokens": Case({"say": TOKENS}, lambda: {"say": ids()}, {"patch": 2}),
    "audio": Case({"hear": SOUND}, lambda: {"hear": tones()}, {}),
    "audio, two channels": Case(
        {"hear": ObservationSpec((2, 640), "uint8", kind="audio")},
        lambda: {"hear": from_waveform(to_waveform(torch.stack([tones(), tones().flip(0)], 1), "int16"), "uint8")},
        {"bands": 20, "window": 0.008},
    ),
    "audio, samples": Case({"hear": SOUND}, lambda: {"hear": tones()}, {"representation": "waveform"}),
    "vector": Case(
        {
            "x": ObservationSpec((3,), "float32"),
            "c": ObservationSpec((2,), "int64", 5),
            "b": ObservationSpec((), "bool", 2),
            "h": ObservationSpec((2,), "float16"),
            "u": ObservationSpec((2,), "uint16"),
        },
        lambda: {
            "x": draw({"x": ObservationSpec((3,), "float32")}, (6,))["x"],
            "c": torch.tensor([[0, 4], [1, 3], [2, 2], [3, 1], [4, 0], [0, 0]]),
            "b": torch.tensor([True, False, True, True, False, False]),
            "h": torch.arange(12).view(6, 2).to(torch.float16),
            "u": (65_000 - 9_000 * torch.arange(12)).clamp(min=0).view(6, 2).to(torch.uint16),
        },
        {},
    ),
}


def modality(name: str) -> tuple[Modality, dict[str, Tensor]]:
    case = CASES[name]
    choices = {name.partition(",")[0]: ModalityOptions(options=case.options)}
    (group,) = modalities(case.keys, choices)
    assert group.config.name == name.partition(",")[0]
    return group, case.obs()


def latent_of(features: Tensor) -> Latent:
    stoch = features[..., 16:].unflatten(-1, (4, 4))
    return Latent(features[..., :16], stoch, stoch)


def test_every_modality_has_a_case():
    assert {name.partition(",")[0] for name in CASES} == MODALITY_CONFIGS.keys()


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("name", CASES)
def test_any_batch_has_tokens_losses_and_something_to_show(name):
    group, obs = modality(name)
    encoder, decoder = group.encoder(SIZES), group.decoder(SIZES)
    for batch in ((6,), (2, 3), (1, 2, 3)):
        shaped = {key: value.reshape(*batch, *value.shape[1:]) for key, value in obs.items()}
        latent = latent_of(torch.randn(*batch, 32))
        assert encoder(shaped).shape == (*batch, encoder.width)
        losses, shown = decoder.loss(latent, shaped), decoder.show(latent)
        assert losses.keys() == shown.keys() == obs.keys()
        for key, value in shaped.items():
            assert losses[key].shape == batch and bool((losses[key] >= 0).all())
            assert shown[key].shape == value.shape and shown[key].dtype == value.dtype


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("name", CASES)
def test_a_batch_is_learned_by_heart_through_a_latent_and_every_parameter_takes_part(name):
    group, obs = modality(name)
    encoder, decoder = group.encoder(SIZES), group.decoder(SIZES)
    bridge = nn.Linear(int(encoder.width), 32)
    network = nn.ModuleList([encoder, bridge, decoder])
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    moved = {name: torch.zeros_like(parameter) for name, parameter in network.named_parameters()}
    history = []
    for _ in range(120):
        latent = latent_of(bridge(encoder(obs)))
        loss = torch.stack([loss.mean() for loss in decoder.loss(latent, obs).values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
        for name_, parameter in network.named_parameters():
            moved[name_] += parameter.grad.abs()
    assert history[-1] < 0.02 * history[0], history[::20]
    assert all(bool(gradient.any()) for gradient in moved.values())
    for key, value in decoder.show(latent).items():
        spec = group.keys[key]
        if spec.kind == "text" or spec.classes:
            assert torch.equal(value, obs[key])


@pytest.mark.parametrize("name", CASES)
def test_no_constant_prediction_is_better_than_the_best_and_one_comes_close(name):
    group, obs = modality(name)
    encoder, decoder = group.encoder(SIZES), group.decoder(SIZES)
    there = {key: torch.tensor([True, True, False, True, True, True]) for key in obs}
    seen = encoder.prepare(obs) if isinstance(encoder, Prepares) else obs
    best = decoder.constant_loss(seen, there)
    again = {key: value.view(2, 3, *value.shape[1:]) for key, value in obs.items()}
    for key, cost in decoder.constant_loss(again, {key: flag.view(2, 3) for key, flag in there.items()}).items():
        close(cost, best[key])
    latent = latent_of(torch.randn(1, 32).expand(6, 32))
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.01)
    for _ in range(150):
        losses = {key: loss[there[key]].mean() for key, loss in decoder.loss(latent, obs).items()}
        assert all(losses[key] > 0.999 * best[key] for key in obs)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    for key, loss in losses.items():
        assert loss < 1.05 * best[key], key


@pytest.mark.parametrize("name", CASES)
def test_a_row_does_not_depend_on_those_beside_it(name):
    group, obs = modality(name)
    encoder, decoder = group.encoder(SIZES), group.decoder(SIZES)
    latent = latent_of(torch.randn(6, 32))
    tokens, losses = encoder(obs), decoder.loss(latent, obs)
    for index, row in enumerate(latent.rows()):
        alone = {key: value[index : index + 1] for key, value in obs.items()}
        close(encoder(alone), tokens[index : index + 1].detach(), rtol=1e-4, atol=1e-5)
        for key, loss in decoder.loss(row, alone).items():
            close(loss, losses[key][index : index + 1].detach(), rtol=1e-4, atol=1e-5)


# --- text ---


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("text")])
def test_where_shapes_must_not_depend_on_data_the_numbers_are_the_same(name, monkeypatch):
    def compute() -> list[Tensor]:
        torch.manual_seed(0)
        group, obs = modality(name)
        encoder, decoder = group.encoder(SIZES), group.decoder(SIZES)
        tokens, losses = encoder(obs), decoder.loss(latent_of(torch.randn(6, 32)), obs)
        (tokens.square().sum() + torch.stack(list(losses.values())).sum()).backward()
        gradients = [parameter.grad for parameter in [*encoder.parameters(), *decoder.parameters()]]
        return [tokens.detach(), *(loss.detach() for loss in losses.values()), *gradients]

    assert text.depends_on_data(torch.zeros(1)) and not text.depends_on_data(torch.zeros(1, device="meta"))
    here = compute()
    monkeypatch.setattr(text, "depends_on_data", lambda tensor: False)
    for mine, fixed in zip(here, compute(), strict=True):
        close(mine, fixed, rtol=1e-4, atol=1e-5)


def test_equal_texts_are_read_once(monkeypatch):
    group, _ = modality("text")
    reader, seen = TextReader(group.keys["say"], SIZES, config("text")), []
    read = reader.read
    monkeypatch.setattr(reader, "read", lambda patches: seen.append(patches.shape) or read(patches))
    tokens = reader(say("go left", "go right", "go left", "go left"))
    assert seen == [(2, 2, 4)]  # two texts, cut to the patches of the longer one
    assert torch.equal(tokens[0], tokens[2]) and not torch.equal(tokens[0], tokens[1])


def config(name: str, **options: object) -> ModalityConfig:
    return MODALITY_CONFIGS[name].changed(ModalityOptions(embed_dim=16, options=options))


def test_long_texts_are_cut_into_larger_patches_unless_one_says_otherwise():
    def patches(length: int, **options: object) -> tuple[int, int]:
        spec = ObservationSpec((length,), "uint8", kind="text")
        reader = TextReader(spec, SIZES, config("text", **options))
        return reader.size, reader.count

    assert (patches(64), patches(128), patches(512), patches(512, patch=4)) == ((4, 16), (4, 32), (8, 64), (4, 128))


def test_nothing_after_the_end_is_read_or_predicted():
    group, _ = modality("text")
    encoder, decoder = group.encoder(SIZES), group.decoder(SIZES)
    latent, clean = latent_of(torch.randn(1, 32)), say("end")
    dirty = clean.clone()
    dirty[0, 4:] = 65
    assert torch.equal(encoder({"say": clean}), encoder({"say": dirty}))
    assert torch.equal(decoder.loss(latent, {"say": clean})["say"], decoder.loss(latent, {"say": dirty})["say"])


def test_a_text_costs_its_bytes_and_its_end_and_a_full_one_has_no_end():
    writer = TextWriter(ObservationSpec((6,), "uint8", kind="text"), SIZES, config("text"))
    nn.init.zeros_(writer.output.weight)
    nn.init.zeros_(writer.output.bias)
    loss = writer.loss(torch.randn(4, 32), say("", "abc", "abcde", "abcdef", length=6))
    close(loss, math.log(256) * torch.tensor([1.0, 4.0, 6.0, 6.0]))


def test_a_text_is_shown_up_to_its_end():
    writer = TextWriter(ObservationSpec((6,), "uint8", kind="text"), SIZES, config("text"))
    nn.init.zeros_(writer.output.weight)
    for written, shown in (([104, 105, 0, 120, 120, 0], "hi"), ([0, 105, 0, 0, 0, 0], ""), ([97] * 6, "aaaaaa")):
        logits = nn.functional.one_hot(torch.tensor([*written, 7, 7]), 256).float()
        writer.output.bias.data = logits.flatten()[: 4 * 256]
        writer.norm.register_forward_hook(lambda *_: torch.zeros(1, 2, 32))
        first = writer.show(torch.randn(1, 32))[0, :4]
        assert to_text(first.numpy()) == shown[:4]


@pytest.mark.parametrize(
    ("spec", "options", "complaint"),
    [
        (ObservationSpec((8,), "float32"), {}, "text is uint8 of one axis, not float32"),
        (ObservationSpec((8, 8), "uint8"), {}, "text is uint8 of one axis"),
        (ObservationSpec((8,), "uint8"), {"patch": 0}, "world.modalities.text.options.patch = 0: should be greater"),
        (ObservationSpec((8,), "uint8"), {"pitch": 1}, "options.pitch = 1: unknown; choose from patch, layers, width"),
        (ObservationSpec((8,), "uint8"), {"heads": 5}, "options.heads = 5: should divide the width 32"),
    ],
)
def test_what_cannot_be_read_as_text_is_refused(spec, options, complaint):
    with pytest.raises(ConfigError, match=complaint):
        TextReader(spec, SIZES, config("text", **options))


# --- sound ---


def test_pitch_is_that_of_the_mel_scale():
    assert mel(1000.0) == pytest.approx(999.9855)
    assert mel(700.0) == pytest.approx(781.1728) and mel(0.0) == 0.0


def test_bands_are_triangles_in_order_and_each_hears_something():
    filters = mel_filters(40, 129, 30_720)  # bins of 120 Hz, wider than the low bands
    assert bool((filters.sum(1) > 0).all()) and bool((filters >= 0).all()) and bool((filters <= 1).all())
    centres = filters.argmax(1)
    assert bool((centres.diff() >= 0).all()) and centres[-1] < 128
    wide = mel_filters(4, 1001, 16_000)  # edges at 0, 568, 1136, ... mel: each peak is where its neighbours end
    edge = 700 * (10 ** (mel(8000.0) / 5 * 2 / 2595) - 1)
    bin_ = round(edge / 8)
    assert wide[1, bin_] > 0.99 and wide[0, bin_] < 0.01 and wide[2, bin_] < 0.01


@pytest.mark.parametrize("pitch", [250.0, 1000.0, 4000.0])
def test_a_sine_of_full_scale_is_about_one_in_its_own_band_and_silence_is_zero(pitch):
    spectrogram = MelSpectrogram(16_000, 16_000, 40, 512)
    seconds = torch.arange(16_000) / 16_000
    drawn = spectrogram(torch.sin(2 * math.pi * pitch * seconds)[None])[0]
    assert drawn.shape == (40, 63)
    band = int(drawn[:, 30].argmax())
    assert drawn[band, 30] == pytest.approx(1.0, abs=0.05)
    assert spectrogram.filters[band, round(pitch / 8000 * 256)] > 0.3
    assert not spectrogram(torch.zeros(2, 16_000)).any()


def test_a_spectrogram_becomes_a_sound_that_has_it():
    spectrogram = MelSpectrogram(4_000, 16_000, 40, 512)
    seconds = torch.arange(4_000) / 16_000
    heard = spectrogram(torch.stack([0.5 * torch.sin(2 * math.pi * 440 * seconds), torch.zeros(4_000)]))
    again = spectrogram(spectrogram.inverse(heard))
    loud = heard[0] > 0.5
    assert loud.any() and (again - heard)[0][loud].abs().mean() < 0.05
    assert not again[1].any()


@pytest.mark.parametrize("samples", [2813, 2814, 2815, 2816])
def test_a_sound_of_any_length_is_drawn_back(samples):
    spectrogram = MelSpectrogram(samples, 16_000, 40, 512)
    sound = spectrogram.inverse(spectrogram(torch.sin(torch.arange(samples) / 5.0)[None]))
    assert sound.shape == (1, samples) and sound.isfinite().all()


def test_a_long_window_is_drawn_back_in_little_memory():
    spectrogram = MelSpectrogram(100_000, 1e9, 40, 131_072)  # 65,537 bins: the square of that would be 17 GB
    assert spectrogram._spread(torch.ones(1, 40, 1)).isfinite().all()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
def test_samples_survive_the_way_to_numbers_and_back(dtype):
    waveform = torch.tensor([-1.0, -0.5, 0.0, 0.5, 0.9])
    samples = from_waveform(waveform, dtype)
    assert samples.dtype == getattr(torch, dtype)
    close(to_waveform(samples, dtype), waveform, atol=1 / 256)
    loud = from_waveform(torch.tensor([-2.0, 2.0]), dtype)
    close(to_waveform(loud, dtype), [-1.0, 1.0], atol=1 / 128)


@pytest.mark.parametrize("options", [{}, {"representation": "waveform"}])
def test_floats_that_are_too_loud_are_cut_off(options):
    spec = ObservationSpec((64,), "float32", kind="audio", rate=8_000)
    (group,) = modalities({"hear": spec}, {"audio": ModalityOptions(options=options)})
    encoder, decoder, latent = group.encoder(SIZES), group.decoder(SIZES), latent_of(torch.randn(2, 32))
    sound = torch.rand(2, 64) * 2 - 1
    loud = {"hear": torch.where(sound.abs() > 0.5, sound * 1e30, sound)}
    cut = {"hear": torch.where(sound.abs() > 0.5, sound.sign(), sound)}
    assert torch.equal(encoder(loud), encoder(cut))
    assert torch.equal(decoder.loss(latent, loud)["hear"], decoder.loss(latent, cut)["hear"])


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("audio")])
def test_what_was_prepared_is_read_and_predicted_as_the_sound_itself(name):
    group, obs = modality(name)
    encoder, decoder = group.encoder(SIZES), group.decoder(SIZES)
    assert isinstance(encoder, Prepares)
    prepared, latent = obs | encoder.prepare(obs), latent_of(torch.randn(6, 32))
    assert prepared["hear"] is obs["hear"] and prepared["hear/prepared"].dtype == torch.float32
    assert encoder.prepare(prepared)["hear/prepared"] is prepared["hear/prepared"]
    assert torch.equal(encoder(prepared), encoder(obs))
    assert torch.equal(decoder.loss(latent, prepared)["hear"], decoder.loss(latent, obs)["hear"])


@pytest.mark.parametrize(("representation", "length"), [("mel", 2), ("waveform", 64)])
def test_sounds_that_have_the_shape_of_a_representation_are_heard_all_the_same(representation, length):
    spec = ObservationSpec((length,), "float32", kind="audio", rate=16_000)
    choices = {"audio": ModalityOptions(options={"representation": representation, "bands": 4})}
    (group,) = modalities({"hear": spec}, choices)
    encoder, sound = (
        group.encoder(SIZES),
        torch.rand(4, length),
    )  # of two samples, four make the shape of one spectrogram
    each = torch.cat([encoder({"hear": row[None]}) for row in sound])
    close(encoder({"hear": sound}), each.detach())
    close(encoder({"hear": sound.view(2, 2, length)}).flatten(0, 1), each.detach())


def test_an_observation_called_like_what_is_made_of_another_is_refused():
    with pytest.raises(ConfigError, match="may not be called 'hear/prepared'"):
        modalities({"hear": SOUND, "hear/prepared": ObservationSpec((2,), "float32")})


def test_an_update_makes_each_spectrogram_once(monkeypatch):
    world, made = make_world({"hear": SOUND}), []
    whole = MelSpectrogram.forward
    monkeypatch.setattr(MelSpectrogram, "forward", lambda mel, wave: made.append(wave.shape) or whole(mel, wave))
    world.loss(make_batch(world))
    assert made == [(3 * 6, 640)]


def test_silence_in_bytes_is_their_middle():
    assert from_waveform(torch.zeros(1), "uint8").item() == 128
    writer = AudioWriter(ObservationSpec((512,), "uint8", kind="audio", rate=30_720), SIZES, config("audio"))
    assert not writer.represent(torch.full((1, 512), 128, dtype=torch.uint8)).any()


@pytest.mark.parametrize(
    ("spec", "options", "complaint"),
    [
        (
            ObservationSpec((8, 8, 3), "uint8"),
            {},
            r"a sound is \[samples\] or \[channels, samples\], not uint8\[8, 8, 3\]",
        ),
        (ObservationSpec((16_000, 2), "int16"), {}, "a sound is"),
        (ObservationSpec((4,), "int64", 3), {}, "a sound is"),
        (
            ObservationSpec((1_601,), "int16"),
            {"representation": "waveform"},
            "at most 1600 samples, not 1601; choose mel",
        ),
        (
            ObservationSpec((64,), "int16"),
            {"representation": "notes"},
            "options.representation = notes: should be 'mel'",
        ),
    ],
)
def test_what_cannot_be_heard_is_refused(spec, options, complaint):
    with pytest.raises(ConfigError, match=complaint):
        AudioWriter(spec, SIZES, config("audio", **options))


def test_a_sound_is_told_by_its_rate_and_text_by_its_kind_alone():
    observation = {
        "noise": ObservationSpec((160,), "int16", rate=8_000),
        "ram": ObservationSpec((64,), "uint8"),
        "say": ObservationSpec((64,), "uint8", kind="text"),
    }
    groups = {group.config.name: list(group.keys) for group in modalities(observation)}
    assert groups == {"vector": ["ram"], "audio": ["noise"], "text": ["say"]}
