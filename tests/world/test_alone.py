"""The world model by itself, on data, and modalities made of plain modules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from reverie import DECODERS, ENCODERS, MODALITY_CONFIGS, ModalityConfig, MultimodalWorldModel
from reverie.env.text import to_bytes
from reverie.errors import ConfigError
from reverie.types import ActionPart, ObservationSpec
from reverie.world.modality import modalities
from reverie.world.options import WorldOptions
from tests.core import CHOICE, SMALL, close, draw, make_batch, shake, uniform

PAIR = {
    "image": replace(MODALITY_CONFIGS["image"], input_shape=(3, 8, 8)),
    "text": replace(MODALITY_CONFIGS["text"], input_shape=(8,)),
}


def pair(rows: int = 2, steps: int = 5) -> dict[str, torch.Tensor | np.ndarray]:
    image = draw({"image": ObservationSpec((3, 8, 8), "uint8")}, (rows, steps))["image"]
    return {"image": image, "text": np.stack([[to_bytes(f"{t} 공", 8) for t in range(steps)]] * rows)}


@pytest.mark.parametrize("name", MODALITY_CONFIGS)
def test_a_world_model_can_be_made_of_any_entry_as_it_is(name):
    with torch.device("meta"):
        world = MultimodalWorldModel({name: MODALITY_CONFIGS[name]}, options=SMALL)
    shapes = {"image": (3, 64, 64), "text": (512,), "audio": (1, 16_000), "vector": (779,)}
    assert world.observation[name].shape == shapes[name] and list(world.encoders) == [name]


def test_all_modalities_may_be_active_at_once():
    with torch.device("meta"):
        world = MultimodalWorldModel(MODALITY_CONFIGS, options=SMALL.model_copy(update={"fusion": "attention"}))
    assert list(world.encoders) == ["vector", "image", "audio", "text"]


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("action", [(), CHOICE])
def test_it_learns_from_data_with_and_without_actions(action: tuple[ActionPart, ...]):
    torch.manual_seed(0)
    world = MultimodalWorldModel(PAIR, action, SMALL)
    done = torch.eye(3)[torch.zeros(2, 5, dtype=torch.long)] if action else None
    batch = world.batch(pair(), done)
    optimizer = torch.optim.Adam(world.parameters(), lr=0.01)
    history = []
    for _ in range(40):
        latent, _, losses = world.loss(batch)
        assert losses.keys() == world.scales.keys()
        total = torch.stack([world.scales[name] * loss.mean() for name, loss in losses.items()]).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(total.item())
    assert history[-1] < 0.7 * history[0]
    shown = world.decode(latent)
    assert {key: (value.shape, value.dtype) for key, value in shown.items()} == {
        "image": ((2, 5, 3, 8, 8), torch.uint8),
        "text": ((2, 5, 8), torch.uint8),
    }
    walk = world.imagine(latent.at(-1), torch.zeros(2, 4, world.action_width))
    assert walk.deter.shape == (2, 5, 16) and torch.equal(walk.deter[:, 0], latent.deter[:, -1])
    assert world.decode(walk)["text"].shape == (2, 5, 8)


def test_what_is_given_is_there_and_what_is_not_is_missing():
    tone = ObservationSpec((64,), "float32", kind="audio", rate=1000.0, optional=True)
    observation = {"sound": tone, "sound/present": ObservationSpec((), "bool", 2)}
    observation |= {"text": ObservationSpec((8,), "uint8", kind="text")}
    world = MultimodalWorldModel(observation, CHOICE, SMALL)
    sound = torch.rand(2, 5, 64)
    for given, present in (({"sound": sound}, True), (pair(), False)):
        batch = world.batch({key: value for key, value in given.items() if key in observation})
        assert (batch.obs["sound/present"] == present).all() and "sound/present/present" not in batch.obs
        assert world.loss(batch)[2]["recon_sound"].any() == present


def test_a_batch_is_filled_with_what_is_not_known():
    world = MultimodalWorldModel(PAIR, CHOICE, SMALL)
    batch = world.batch({"text": pair()["text"]})
    assert batch.first.tolist() == 2 * [[True, False, False, False, False]]
    assert not batch.reward.any() and batch.action.shape == (2, 5, 3) and not batch.terminal.any()
    assert batch.obs["image"].shape == (2, 5, 3, 8, 8) and not batch.obs["image/present"].any()
    losses = world.loss(batch)[2]
    assert not losses["recon_image"].any() and losses["recon_text"].all()
    given = world.batch(pair(), reward=torch.ones(2, 5), first=torch.ones(2, 5, dtype=torch.bool))
    assert given.reward.all() and given.first.all() and "text/present" not in given.obs


@pytest.mark.parametrize(
    "obs", [{}, {"smell": torch.zeros(1, 1)}, {"text": torch.zeros(1, 1, 8), "smell": torch.zeros(1)}]
)
def test_a_batch_of_what_is_not_observed_is_refused(obs):
    world = MultimodalWorldModel(PAIR, options=SMALL)
    with pytest.raises(ConfigError, match=r"a batch of .*: the world model observes \['image', 'text'\]"):
        world.batch(obs)


def test_a_world_model_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="a world model of no observations"):
        MultimodalWorldModel({})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"text": torch.zeros(8)}, r"'text' of shape \[8\], expected \[2, 5, 8\]"),
        ({"text": torch.zeros(2, 8)}, r"'text' of shape \[2, 8\], expected \[2, 5, 8\]"),
        ({"text": torch.zeros(2, 4, 8)}, r"'text' of shape \[2, 4, 8\], expected \[2, 5, 8\]"),
        ({"image": torch.zeros(2, 5, 3, 8)}, r"'image' of shape \[2, 5, 3, 8\], expected \[B, T, 3, 8, 8\]"),
        ({"text/present": torch.ones(2, 5, 1)}, r"'text/present' of shape \[2, 5, 1\], expected \[2, 5\]"),
    ],
)
def test_a_batch_of_another_shape_is_refused_by_name(change, complaint):
    world = MultimodalWorldModel(PAIR, CHOICE, SMALL)
    with pytest.raises(ConfigError, match=f"^a batch has {complaint}"):
        world.batch(pair() | change)
    with pytest.raises(ConfigError, match=r"^a batch has 'reward' of shape \[2, 4\], expected \[2, 5\]"):
        world.batch(pair(), reward=torch.zeros(2, 4))
    with pytest.raises(ConfigError, match=r"^a batch has 'action' of shape \[2, 5, 2\], expected \[2, 5, 3\]"):
        world.batch(pair(), torch.zeros(2, 5, 2))


def test_images_may_have_their_channels_first_or_last_and_be_bytes_or_floats():
    world = MultimodalWorldModel({"image": PAIR["image"]}, options=SMALL)
    shake(world)
    first = pair()["image"]
    last = first.movedim(-3, -1)
    tokens = world.encode({"image": first})
    assert torch.equal(tokens, world.encode({"image": last}))
    close(world.encode({"image": first.float() / 255}), tokens.detach())
    latent = world.observe(world.batch({"image": first}), uniform(2, 5, 4))[0]
    loss, same = (world.explain(latent, world.batch({"image": each}))["recon_image"] for each in (first, last))
    assert torch.equal(loss, same)


# --- plain modules ---


class Reader(nn.Module):
    def __init__(self, width: int = 6):
        super().__init__()
        self.layer = nn.Linear(8, width)

    def forward(self, x):
        return self.layer(x.flatten(1))


class Writer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LazyLinear(8)

    def forward(self, x):
        return self.layer(x).unflatten(-1, (4, 2))


@pytest.fixture
def plain(monkeypatch):
    """A modality of two modules that know nothing of this package, changed by what a test gives."""

    def register(encoder=Reader, decoder=Writer, decoder_type: str = "plain") -> ModalityConfig:
        monkeypatch.setitem(ENCODERS, "plain", encoder)
        monkeypatch.setitem(DECODERS, "plain", decoder)
        monkeypatch.setitem(MODALITY_CONFIGS, "scan", ModalityConfig("scan", (4, 2), 0, "plain", decoder_type))
        return MODALITY_CONFIGS["scan"]

    return register


@pytest.mark.parametrize("dtype", ["float32", "int16"])
@pytest.mark.parametrize("decoder_type", ["plain", "vector"])
def test_plain_modules_are_encoder_and_decoder(plain, decoder_type, dtype):
    plain(decoder_type=decoder_type)
    observation = {"scan": ObservationSpec((4, 2), dtype)}
    world = MultimodalWorldModel(observation, CHOICE, SMALL)
    batch = make_batch(world)
    latent, tokens, losses = world.loss(batch, uniform(3, 6, 4))
    assert tokens.shape == (3, 6, 6) and losses["recon_scan"].shape == (3, 6)
    shown = world.decode(latent)["scan"]
    assert shown.shape == (3, 6, 4, 2) and shown.dtype == getattr(torch, dtype)
    losses["recon_scan"].sum().backward()
    assert world.encoders["scan"].readers[0].network.layer.weight.grad.any()


def test_a_plain_prediction_costs_its_squared_error(plain):
    (group,) = modalities({"scan": plain().observation})
    decoder = group.decoder(SMALL.sizes)
    decoder.writers[0].network.register_forward_hook(lambda *_: torch.full((2, 4, 2), 3.0))
    latent = MultimodalWorldModel({"scan": plain()}, options=SMALL).initial(2)
    close(decoder.loss(latent, {"scan": torch.ones(2, 4, 2)})["scan"], [32.0, 32.0])
    values, there = torch.tensor([1.0, 2.0, 9.0]), torch.tensor([True, True, False])
    scans = values[:, None, None].expand(3, 4, 2)
    close(decoder.constant_loss({"scan": scans}, {"scan": there})["scan"], 8 * 0.25)


def test_options_that_plain_modules_cannot_read_are_refused(plain):
    plain()
    options = SMALL.model_copy(update={"modalities": WorldOptions(modalities=CHOSEN).modalities})
    with pytest.raises(ConfigError, match="world.modalities.scan.options.depth = 4: unknown; there is nothing to"):
        MultimodalWorldModel({"scan": MODALITY_CONFIGS["scan"]}, options=options)


CHOSEN = {"scan": {"options": {"depth": 4}}}


class Broken(nn.Module):
    def forward(self, x):
        return x.missing


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"encoder": nn.Identity}, r"'scan': Identity makes \[4, 2\] of an observation \[4, 2\], not one axis"),
        ({"encoder": Broken}, r"'scan': Broken fails with \[2, 4, 2\]: AttributeError: .*missing"),
        ({"decoder": nn.Identity}, r"'scan': Identity predicts \[32\], but an observation is \[4, 2\]"),
        ({"decoder_type": "painter"}, "'scan' has decoder_type = 'painter'; choose from .*, or add it to DECODERS"),
    ],
)
def test_a_plain_module_that_does_not_fit_is_refused_in_one_line(plain, changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        MultimodalWorldModel({"scan": plain(**changes)}, options=SMALL)
