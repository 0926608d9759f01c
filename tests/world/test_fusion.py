"""Tokens of several modalities become one: side by side, or after attention, with some of them missing."""

from __future__ import annotations

import pytest
import torch

from reverie.types import ObservationSpec
from reverie.world.fusion import FUSIONS, Concat, CrossModalAttention
from tests import core
from tests.core import IMAGE, SENSES, VECTORS, close, draw, make_agent, make_batch, make_world, shake, uniform

ALL = VECTORS | IMAGE | SENSES


def tokens() -> list[torch.Tensor]:
    return [uniform(2, 3, width, seed=width) for width in (5, 8, 2)]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_fresh_fusion_lays_tokens_side_by_side(fusion):
    network = FUSIONS[fusion]([5, 8, 2], 8)
    assert network.width == 15
    close(network(tokens(), [None] * 3), torch.cat(tokens(), -1))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_nothing_of_a_missing_token_is_used_and_the_other_rows_do_not_notice(fusion):
    network = FUSIONS[fusion]([5, 8, 2], 8)
    shake(network)
    here = torch.tensor([[True, False, True], [True, True, True]])
    other = tokens()
    other[1][0, 1] += 7.0
    found, same = (network(given, [None, here, None]) for given in (tokens(), other))
    assert torch.equal(found, same)
    all_there = network(tokens(), [None] * 3)
    differs = (found != all_there).any(-1)
    assert torch.equal(differs, ~here)


def test_a_missing_token_is_zero_side_by_side_and_learned_under_attention():
    gone = torch.zeros(2, 3, dtype=torch.bool)
    assert not Concat([5, 8, 2], 8)(tokens(), [None, gone, None])[..., 5:13].any()
    network = CrossModalAttention([5, 8, 2], 8)
    network.absent[1].data.fill_(3.0)
    close(network(tokens(), [None, gone, None])[..., 5:13], torch.full((2, 3, 8), 3.0))
    network(tokens(), [None, gone, None]).sum().backward()
    assert network.absent[1].grad.any() and network.absent[0].grad is None


def test_under_attention_every_token_may_learn_of_every_other():
    network = CrossModalAttention([5, 8, 2], 8)
    shake(network)
    for changed in range(3):
        given = tokens()
        given[changed][1, 2] += 1.0
        moved = (network(given, [None] * 3) != network(tokens(), [None] * 3))[1, 2]
        assert all(bool(part.any()) for part in moved.split([5, 8, 2]))


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_world_model_learns_from_any_part_of_what_may_be_there(fusion):
    world = make_world(ALL, fusion=fusion)
    shake(world)
    batch = make_batch(world)
    losses = world.loss(batch, uniform(3, 6, 4))[2]
    assert torch.equal(losses["recon_hear"] != 0, batch.obs["hear/present"])
    silent = dict(batch.obs) | {"hear": torch.where(batch.obs["hear/present"][..., None], batch.obs["hear"], 9)}
    assert torch.equal(world.encode(batch.obs), world.encode(silent))
    total = torch.stack([loss.mean() for loss in losses.values()]).sum()
    total.backward()
    missing = [name for name, parameter in world.named_parameters() if parameter.grad is None]
    assert {name.rpartition(".")[0] for name in missing} <= {"fusion.absent"}  # of what is always there


def test_a_modality_is_there_if_any_of_its_observations_is():
    pair = {key: ObservationSpec((64,), "int16", kind="audio", rate=8_000, optional=True) for key in ("left", "right")}
    flags = {f"{key}/present": ObservationSpec((), "bool", 2) for key in pair}
    world = make_world(pair | flags)
    shake(world)
    obs = draw(pair | flags, (4,))
    obs |= {"left/present": torch.tensor([True, True, False, False])}
    obs |= {"right/present": torch.tensor([True, False, True, False])}
    assert list(world.encoders) == ["vector", "audio"]
    audio = world.encode(obs)[..., world.encoders["vector"].width :]
    assert audio.any(-1).tolist() == [True, True, True, False]


# --- dropout ---


def test_whole_sequences_are_hidden_and_predicted_all_the_same():
    world = make_world(VECTORS | IMAGE, modality_dropout=0.5)
    shake(world)
    batch = make_batch(world)
    assert list(world.encoders) == ["vector", "image"] and world.noise == 4 + 2
    noise = uniform(3, 6, 6)
    noise[:, :, 4:] = torch.tensor([[0.9, 0.9], [0.1, 0.9], [0.9, 0.1]])[:, None]
    noise[:, 1:, 4:] = 0.0  # only the first step decides
    read = []
    world.fusion.register_forward_hook(lambda module, inputs, token: read.append(token))
    latent, tokens, losses = world.loss(batch, noise)
    whole, part = read
    vector, image = part.split([12, part.shape[-1] - 12], -1)
    assert vector.any(-1).all(1).tolist() == [True, False, True] and not vector[1].any()
    assert image.any(-1).all(1).tolist() == [True, True, False] and not image[2].any()
    assert bool((losses["recon_image"] > 0).all()) and bool((losses["recon_velocity"] > 0).all())
    assert torch.equal(tokens, whole) and torch.equal(tokens, world.encode(batch.obs))  # motives see all there was
    blind = world.rssm.observe(
        part, batch.previous_action, batch.first, *world.unpack(batch.context_latent), noise[..., :4]
    )
    close(latent.deter, blind.deter)
    thrifty = make_world(VECTORS | IMAGE, modality_dropout=0.5, gradient_checkpointing=True)
    thrifty.load_state_dict(world.state_dict())
    again, same, _ = thrifty.loss(batch, noise)
    close(same, tokens, rtol=1e-4)
    close(again.deter, latent.deter, rtol=1e-4)


def test_an_agent_draws_what_is_hidden_when_it_learns_and_only_with_dropout(monkeypatch):
    assert make_world(VECTORS | IMAGE).noise == 4
    choices = {"fusion": "attention", "modality_dropout": 0.5}
    monkeypatch.setattr(core, "SMALL", core.SMALL.model_copy(update=choices))
    agent, drawn = make_agent(ALL), []
    whole = agent.world.observe
    agent.world.observe = lambda batch, uniform: drawn.append(uniform.shape) or whole(batch, uniform)
    agent.learn(make_batch(agent.world))
    assert drawn == [(3, 6, 4 + 4)]
