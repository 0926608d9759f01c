from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from reverie import native
from reverie.errors import ConfigError
from reverie.functional import symlog
from reverie.types import Latent, ObservationSpec
from reverie.world.modality import DECODERS, MODALITY_CONFIGS, ModalityConfig, ModalityOptions, modalities
from reverie.world.modality.image import ImageDecoder, ImageEncoder, plan
from reverie.world.modality.vector import VectorDecoder, VectorEncoder
from reverie.world.options import WorldOptions
from reverie.world.sizes import Sizes
from tests.core import IMAGE, VECTORS, close, draw, fill, make_batch, make_world, shake, uniform

GRAY = {"image": ObservationSpec((8, 8, 1), "uint8")}
RAMP = {"image": (4 * torch.arange(64) % 256).to(torch.uint8).view(1, 8, 8, 1)}
GOLDEN_IMAGE = Sizes(deter=8, hidden=3, classes=3, units=2, depth=1, embed=4, stoch=2, blocks=2)
GOLDEN_LATENT = Latent(
    torch.tensor([[0.1, -0.2, 0.3, -0.4, 0.5, -0.6, 0.7, -0.8]]), torch.eye(3)[[1, 2]][None], torch.zeros(1, 2, 3)
)
SMALL = Sizes(deter=16, hidden=8, classes=4, units=16, depth=2, embed=12, stoch=4, blocks=2, layers=2)
PICTURE, NUMBERS = MODALITY_CONFIGS["image"], replace(MODALITY_CONFIGS["vector"], embed_dim=4)
COLUMNS = {"side": ObservationSpec((8, 8, 1), "uint8"), "front": ObservationSpec((8, 8, 3), "uint8")}


def latents(*shape: int) -> Latent:
    return Latent(uniform(*shape, 16), uniform(*shape, 4, 4, seed=1), torch.zeros(*shape, 4, 4))


# --- images ---


def test_the_image_encoder_has_the_published_values():
    encoder = ImageEncoder(GRAY, GOLDEN_IMAGE, PICTURE)
    convolution, _, norm = encoder.stages
    fill(convolution, norm)
    tokens = encoder(RAMP)
    assert tokens.shape == (1, encoder.width) == (1, 32)
    first = [0.273708, 1.330881, 0.263326, 1.336030, 0.254026, 1.340658, 0.247681, 1.343753]
    close(tokens[0, :8], first, rtol=0, atol=3e-6)
    close(tokens.sum(), 24.78767)


def test_the_image_decoder_has_the_published_values():
    decoder = ImageDecoder(GRAY, GOLDEN_IMAGE, PICTURE)
    enter, enter_norm, leave = decoder.from_stoch
    fill(decoder.stages[-1], decoder.from_deter, enter, enter_norm, leave, decoder.join)
    image = decoder(GOLDEN_LATENT)["image"]
    assert image.shape == (1, 8, 8, 1)
    row = [0.562463, 0.505149, 0.542036, 0.425074, 0.573198, 0.528692, 0.510193, 0.587435]
    close(image[0, 0, :, 0], row, rtol=0, atol=2e-6)
    close(image.mean(), 0.5148566)


def test_each_block_of_the_state_paints_neighbouring_channels_over_the_whole_map():
    decoder, maps = ImageDecoder(GRAY, SMALL, PICTURE), []  # two blocks, four channels
    decoder.join.register_forward_pre_hook(lambda module, inputs: maps.append(inputs[0]))
    before = latents(1)
    deter = before.deter.clone()
    deter[:, :8] += 1.0
    for latent in (before, replace(before, deter=deter)):
        decoder(latent)
    changed = (maps[0] != maps[1])[0]
    assert bool(changed[:2].all()) and not changed[2:].any()


def test_the_image_loss_is_a_sum_over_pixels():
    keys = {"image": ObservationSpec((64, 64, 3), "uint8")}
    decoder = ImageDecoder(keys, SMALL, PICTURE)
    truth = torch.full((2, 3, 64, 64, 3), 51, dtype=torch.uint8)
    decoder.forward = lambda latent: {"image": torch.full((2, 3, 64, 64, 3), 0.3)}
    loss = decoder.loss(latents(2, 3), {"image": truth})["image"]
    close(loss, torch.full((2, 3), 122.88))


@pytest.mark.parametrize(
    ("shape", "channels", "side"),
    [((64, 64), [4, 6, 8, 8], 4), ((96, 96), [4, 6, 8, 8], 6), ((40, 40), [4, 6, 8], 5), ((8, 8), [4], 4)],
)
def test_images_are_halved_to_a_small_map(shape, channels, side):
    assert plan({"image": ObservationSpec((*shape, 3), "uint8")}, 2) == (channels, side, side)


@pytest.mark.parametrize("shape", [(65, 64), (4, 4), (512, 512)])
def test_an_image_that_cannot_be_halved_is_refused_with_advice(shape):
    with pytest.raises(ConfigError, match="env.size"):
        plan({"image": ObservationSpec((*shape, 3), "uint8")}, 2)


def test_images_of_different_sizes_are_refused():
    with pytest.raises(ConfigError, match="differ in size"):
        plan(GRAY | {"other": ObservationSpec((16, 16, 1), "uint8")}, 2)


def test_several_images_are_stacked_and_drawn_key_by_key():
    encoder, decoder, obs = (
        ImageEncoder(COLUMNS, SMALL, PICTURE),
        ImageDecoder(COLUMNS, SMALL, PICTURE),
        draw(COLUMNS, (2, 3)),
    )
    assert encoder(obs).shape == (2, 3, encoder.width)
    stacked = {"image": torch.cat([obs["front"], obs["side"]], -1)}  # alphabetical
    one = ImageEncoder({"image": ObservationSpec((8, 8, 4), "uint8")}, SMALL, PICTURE)
    one.load_state_dict(encoder.state_dict())
    close(encoder(obs), one(stacked))
    shown = decoder.show(latents(2, 3))
    assert {key: (value.dtype, value.shape) for key, value in shown.items()} == {
        "front": (torch.uint8, (2, 3, 8, 8, 3)),
        "side": (torch.uint8, (2, 3, 8, 8, 1)),
    }


@pytest.mark.parametrize("side", [8, 16, 20, 28])
def test_a_map_whose_channels_the_blocks_do_not_divide_is_painted_by_fewer_blocks(side):
    keys = {"image": ObservationSpec((side, side, 3), "uint8")}
    sizes = replace(SMALL, depth=4, blocks=8)
    assert ImageDecoder(keys, sizes, PICTURE)(latents(2))["image"].shape == (2, side, side, 3)


@pytest.mark.parametrize("enabled", [True, False])
def test_maps_have_their_channels_last_in_memory_on_the_whole_way(enabled, monkeypatch):
    monkeypatch.setattr(native, "_enabled", frozenset(native.KERNELS if enabled else ()))
    big = {"image": ObservationSpec((32, 32, 3), "uint8")}
    encoder, decoder = ImageEncoder(big, SMALL, PICTURE), ImageDecoder(big, SMALL, PICTURE)
    maps: list[torch.Tensor] = []
    for stage in (*encoder.stages, decoder.join, *decoder.stages):
        stage.register_forward_hook(lambda module, inputs, output: maps.append(output))
    encoder(draw(big, (2,)))
    decoder(latents(2))
    assert len(maps) == len(encoder.stages) + 1 + len(decoder.stages)
    assert all(map.is_contiguous(memory_format=torch.channels_last) for map in maps)


def test_oblong_images_keep_their_sides():
    keys = {"image": ObservationSpec((8, 16, 3), "uint8")}
    assert ImageEncoder(keys, SMALL, PICTURE)(draw(keys, (2,))).shape == (2, 4 * 8 * 4)
    assert ImageDecoder(keys, SMALL, PICTURE)(latents(2))["image"].shape == (2, 8, 16, 3)


# --- vectors ---


def test_the_vector_encoder_has_the_published_values():
    keys = {
        "c": ObservationSpec((), "float32"),
        "a": ObservationSpec((), "int64", 3),
        "b": ObservationSpec((2,), "float32"),
    }
    encoder = VectorEncoder(keys, Sizes(8, 3, 3, units=4, depth=1, embed=4, layers=1), NUMBERS)
    fill(*encoder.mlp)
    obs = {"b": torch.tensor([[10.0, -1.0]]), "a": torch.tensor([2]), "c": torch.tensor([0.5])}
    close(encoder(obs)[0], [1.171814, 0.175291, -0.263911, 0.061182], rtol=0, atol=1e-6)


def test_numbers_are_predicted_in_symlog_space_and_summed_without_a_half():
    decoder = VectorDecoder(
        {"x": ObservationSpec((), "float32"), "y": ObservationSpec((2,), "float32")}, SMALL, NUMBERS
    )
    decoder.forward = lambda latent: {"x": torch.tensor([[1.0]]), "y": torch.tensor([[1.0, 1.0]])}
    loss = decoder.loss(latents(1), {"x": torch.tensor([10.0]), "y": torch.tensor([[10.0, 10.0]])})
    close(loss["x"], [1.9541113])
    close(loss["y"], [2 * 1.9541113])


def test_integers_are_predicted_by_cross_entropy_per_number():
    keys = {"dice": ObservationSpec((2,), "int64", 6)}
    decoder, logits = VectorDecoder(keys, SMALL, NUMBERS), torch.randn(3, 12)
    decoder.forward = lambda latent: {"dice": logits}
    faces = torch.tensor([[0, 5], [1, 2], [3, 3]])
    expected = nn.functional.cross_entropy(logits.view(3, 2, 6).transpose(1, 2), faces, reduction="none").sum(-1)
    close(decoder.loss(latents(3), {"dice": faces})["dice"], expected)


def test_a_vector_is_shown_in_its_own_units_and_shape():
    decoder, obs = VectorDecoder(VECTORS, SMALL, NUMBERS), draw(VECTORS, (2, 3))
    exact = {
        "gear": 9.0 * nn.functional.one_hot(obs["gear"], 3).float(),
        "height": symlog(obs["height"])[..., None],
        "velocity": symlog(obs["velocity"]),
    }
    decoder.forward = lambda latent: exact
    shown = decoder.show(latents(2, 3))
    for key, value in obs.items():
        assert shown[key].shape == value.shape and shown[key].dtype == value.dtype
        close(shown[key].float(), value.float())


def test_whole_numbers_are_shown_as_such_within_their_bounds():
    keys = {"ram": ObservationSpec((3,), "uint8"), "sample": ObservationSpec((2,), "int16")}
    decoder = VectorDecoder(keys, SMALL, NUMBERS)
    decoder.forward = lambda latent: {
        "ram": symlog(torch.tensor([-3.0, 7.4, 300.0])),
        "sample": symlog(torch.tensor([-40_000.0, 40_000.0])),
    }
    shown = decoder.show(latents())
    assert shown["ram"].tolist() == [0, 7, 255] and shown["ram"].dtype == torch.uint8
    assert shown["sample"].tolist() == [-32768, 32767] and shown["sample"].dtype == torch.int16


# --- groups ---


def test_keys_are_grouped_by_what_they_look_like():
    flat_bytes = {"ram": ObservationSpec((128,), "uint8")}
    groups = {group.config.name: list(group.keys) for group in modalities(VECTORS | COLUMNS | flat_bytes)}
    assert groups == {"vector": ["gear", "height", "ram", "velocity"], "image": ["front", "side"]}
    assert list(groups) == ["vector", "image"]


def test_tokens_of_mixed_observations_are_vectors_then_images():
    world, obs = make_world(VECTORS | IMAGE), draw(VECTORS | IMAGE, (2, 3))
    shake(world)
    tokens = world.encode(obs)
    close(tokens[..., :12], world.encoders["vector"](obs))
    close(tokens[..., 12:], world.encoders["image"](obs))


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_an_unknown_network_is_refused_with_those_that_exist(monkeypatch, kind):
    types = {"encoder": "vector", "decoder": "vector"} | {kind: "lstm"}
    monkeypatch.setitem(MODALITY_CONFIGS, "lidar", ModalityConfig("lidar", (), 8, types["encoder"], types["decoder"]))
    known = "choose from image, text, audio, vector, or add it to"
    with pytest.raises(ConfigError, match=f"'lidar' has {kind}_type = 'lstm'; {known}"):
        make_world({"lidar": ObservationSpec((16, 4), "float32")})


def test_a_decoder_that_lacks_something_is_refused(monkeypatch):
    class Half(nn.Module):
        def __init__(self, keys, sizes, config):
            super().__init__()

        def loss(self, latent, obs):
            return {}

    monkeypatch.setitem(DECODERS, "half", Half)
    monkeypatch.setitem(MODALITY_CONFIGS, "lidar", ModalityConfig("lidar", (), 8, "vector", "half"))
    with pytest.raises(ConfigError, match="'lidar': Half is no decoder, it lacks constant_loss, show; reverie.world"):
        make_world({"lidar": ObservationSpec((16, 4), "float32")})


def test_a_key_of_another_shape_than_its_configuration_is_refused(monkeypatch):
    monkeypatch.setitem(MODALITY_CONFIGS, "lidar", ModalityConfig("lidar", (32, 4), 8, "vector", "vector"))
    for key, kind in (("lidar", ""), ("front", "lidar")):
        with pytest.raises(ConfigError, match=r"'lidar' is configured for shape \(32, 4\), .* shows \(16, 4\)"):
            modalities({key: ObservationSpec((16, 4), "float32", kind=kind)})


def test_a_kind_comes_before_a_name_and_a_name_before_what_it_looks_like(monkeypatch):
    monkeypatch.setitem(MODALITY_CONFIGS, "lidar", ModalityConfig("lidar", (), 8, "vector", "vector"))
    ten = ModalityConfig("ten", (), 8, "vector", "vector", claims=lambda spec: spec.shape == (10,))
    monkeypatch.setitem(MODALITY_CONFIGS, "ten", ten)
    observation = {
        "image": ObservationSpec((5,), "float32"),
        "lidar": ObservationSpec((10,), "float32"),
        "left": ObservationSpec((3,), "float32", kind="lidar"),
        "photo": ObservationSpec((8, 8, 3), "uint8", kind="vector"),
        "row": ObservationSpec((10,), "float32"),
        "ten": ObservationSpec((4,), "float32"),
        "view": ObservationSpec((8, 8, 3), "uint8"),
    }
    groups = {group.config.name: sorted(group.keys) for group in modalities(observation)}
    assert groups == {
        "vector": ["image", "photo", "ten"],
        "image": ["view"],
        "lidar": ["left", "lidar"],
        "ten": ["row"],
    }
    assert list(groups) == ["vector", "image", "lidar", "ten"]


def test_a_kind_without_an_entry_and_what_nothing_claims_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match="'smell' is of the kind 'odour'; choose from vector, image"):
        modalities({"smell": ObservationSpec((3,), "float32", kind="odour")})
    monkeypatch.setitem(MODALITY_CONFIGS, "vector", replace(NUMBERS, claims=lambda spec: False))
    with pytest.raises(
        ConfigError, match=r"no modality claims the observation 'x' \(float32\[3\]\); say with env.kinds"
    ):
        modalities({"x": ObservationSpec((3,), "float32")})


def test_a_configuration_changes_one_modality():
    chosen = {"vector": {"loss_scale": 5, "embed_dim": 7}}
    world = make_world(VECTORS | IMAGE, reconstruction_scale=2.0, modalities=WorldOptions(modalities=chosen).modalities)
    assert world.encoders["vector"].width == 7
    assert world.scales["recon_velocity"] == 10.0 and world.scales["recon_image"] == 2.0


@pytest.mark.parametrize("name", ["image", "vector"])
def test_an_option_of_networks_that_have_none_is_refused(name):
    choices = WorldOptions(modalities={name: {"options": {"depth": 4}}}).modalities
    complaint = f"world.modalities.{name}.options.depth = 4: unknown; there is nothing to choose"
    (group,) = (group for group in modalities(VECTORS | IMAGE, choices) if group.config.name == name)
    for part in (group.encoder, group.decoder):
        with pytest.raises(ConfigError, match=complaint):
            part(SMALL)


def test_a_choice_about_a_modality_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="world.modalities.smell: no such modality; choose from vector, image"):
        modalities(VECTORS, {"smell": ModalityOptions(loss_scale=3)})


# --- what is missing ---


def test_what_is_missing_is_not_to_be_predicted():
    spec = {"height": ObservationSpec((), "float32", optional=True), "height/present": ObservationSpec((), "bool", 2)}
    world = make_world(VECTORS | spec)
    shake(world)
    batch = make_batch(world)
    losses = world.loss(batch, uniform(3, 6, 4))[2]
    there = batch.obs["height/present"]
    assert there.any() and not there.all()
    assert torch.equal(losses["recon_height"] != 0, there)
    assert losses["recon_velocity"].all() and losses["recon_height/present"].all()


@pytest.mark.parametrize(
    ("spec", "kind", "complaint"),
    [
        (ObservationSpec((8, 8, 3), "uint8"), "audio", r"a sound is .*, not uint8\[8, 8, 3\]"),
        (ObservationSpec((8, 8, 3), "uint8"), "text", r"text is uint8 of one axis, not uint8\[8, 8, 3\]"),
        (
            ObservationSpec((), "int64", 3),
            "image",
            r"an image is \[height, width, channels\], not int64\[\] of 3 classes",
        ),
        (ObservationSpec((5,), "float32"), "image", r"an image is \[height, width, channels\], not float32\[5\]"),
    ],
)
def test_an_observation_that_cannot_be_of_its_kind_is_refused_by_name(spec, kind, complaint):
    with pytest.raises(ConfigError, match=rf"^observation 'tup/1': {complaint}.*env.kinds"):
        make_world({"tup/1": replace(spec, kind=kind)})
