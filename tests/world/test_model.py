from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from reverie.behavior.actor_critic import ActorCritic
from reverie.errors import ConfigError
from reverie.types import ActionPart, ActionSpec, ObservationSpec
from reverie.world.model import MultimodalWorldModel
from reverie.world.options import WorldOptions
from tests.core import IMAGE, VECTORS, close, make_batch, make_level, make_world, shake, uniform

# --- parameter counts ---


def floats(**widths: int) -> dict[str, ObservationSpec]:
    return {key: ObservationSpec((width,) if width > 1 else (), "float32") for key, width in widths.items()}


TASKS: dict[str, tuple[dict[str, ObservationSpec], ActionSpec]] = {
    "walker": (floats(orientations=14, height=1, velocity=9), (ActionPart("action", 6, False),)),
    "cartpole": (floats(position=3, velocity=2), (ActionPart("action", 1, False),)),
    "crafter": ({"image": ObservationSpec((64, 64, 3), "uint8")}, (ActionPart("action", 17, True),)),
    "atari": ({"image": ObservationSpec((96, 96, 1), "uint8")}, (ActionPart("action", 18, True),)),
}
COUNTS = {
    "1m": (640_867, 637_446, 687_875, 769_762),
    "12m": (9_738_019, 9_724_422, 10_498_259, 11_808_850),
    "25m": (21_782_947, 21_762_566, 23_495_475, 26_444_402),
    "50m": (38_612_003, 38_584_838, 41_658_259, 46_900_882),
    "100m": (86_622_499, 86_581_766, 93_480_531, 105_276_626),
    "200m": (153_769_507, 153_715_206, 165_965_075, 186_936_082),
    "400m": (345_473_059, 345_391_622, 372_920_979, 420_106_130),
}


def numbers(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def build(size: str, task: str) -> tuple[MultimodalWorldModel, ActorCritic]:
    observation, action = TASKS[task]
    with torch.device("meta"):
        world = MultimodalWorldModel(observation, action, WorldOptions.model_validate({"size": size}))
        sizes = world.sizes
        return world, make_level(inputs=sizes.features, action=action, units=sizes.units, bins=sizes.bins)


@pytest.mark.parametrize("size", COUNTS)
def test_every_size_has_the_published_number_of_parameters(size):
    counts = tuple(sum(numbers(module) for module in build(size, task)) for task in TASKS)
    assert counts == COUNTS[size]


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        ("1m", (364_416, 51_096, 10_112, 57_663, 41_153, 50_316, 66_111)),
        ("12m", (5_783_040, 794_136, 138_752, 721_407, 656_129, 791_052, 853_503)),
    ],
)
def test_every_module_has_the_published_number_of_parameters(size, counts):
    world, behavior = build(size, "walker")
    heads = (world.reward_head, world.continue_head, behavior.actor, behavior.critic)
    assert tuple(map(numbers, (world.rssm, world.decoders, world.encoders, *heads))) == counts


@pytest.mark.parametrize("widths", [{"deter": 100}, {"blocks": 3}, {"bins": 64}])
def test_widths_that_do_not_fit_together_are_refused(widths):
    with pytest.raises(ConfigError, match="should"):
        WorldOptions(**widths)


# --- losses ---


def test_a_fresh_model_predicts_exactly_no_reward_and_pays_ln_255_for_it():
    world = make_world()
    assert not world.reward(torch.randn(5, 4, world.sizes.features)).any()
    losses = world.loss(make_batch(world), uniform(3, 6, 4))[2]
    close(losses["reward"], torch.full((3, 6), 5.5412635))


def test_the_continue_head_learns_the_discounted_chance_to_go_on():
    world, batch = make_world(), make_batch(make_world())
    terminal = batch.terminal.clone()
    terminal[0, 2] = True
    output = list(world.continue_head)[-1]
    with torch.no_grad():
        output.weight.zero_()
        output.bias.fill_(2.0)
    loss = world.loss(replace(batch, terminal=terminal), uniform(3, 6, 4))[2]["continue"]
    close(loss[0, 2], 2.1269281)
    close(loss[1, 2], 0.1329340)
    with torch.no_grad():
        output.bias.fill_(math.log(332.0))
    close(world.loss(batch, uniform(3, 6, 4))[2]["continue"].mean(), 0.0204404)


def test_the_pure_chance_to_go_on_has_the_discount_divided_out():
    world = make_world()
    output = list(world.continue_head)[-1]
    with torch.no_grad():
        output.weight.zero_()
        output.bias.fill_(math.log(9.0))
    close(world.continues(torch.zeros(1, world.sizes.features))[0], 0.902711)


def test_every_loss_has_a_scale_and_one_number_per_step():
    world = make_world(VECTORS | IMAGE, dynamics_scale=0.5, kl_scale=3.0)
    latent, _, losses = world.loss(make_batch(world), uniform(3, 6, 4))
    assert losses.keys() == world.scales.keys()
    assert all(loss.shape == (3, 6) for loss in losses.values())
    assert {name for name in losses if name.startswith("recon_")} == {f"recon_{key}" for key in VECTORS | IMAGE}
    assert world.scales["dynamics"] == 1.5 and world.scales["representation"] == pytest.approx(0.3)
    assert latent.deter.shape == (3, 6, 16) and latent.stoch.shape == (3, 6, 4, 4)


def test_the_divergence_is_between_posterior_and_prior_of_the_same_step():
    world = make_world(free_nats=0.0)
    shake(world)
    latent, _, losses = world.loss(make_batch(world), uniform(3, 6, 4))
    posterior = 0.99 * torch.softmax(latent.logits, -1) + 0.01 / 4
    prior = 0.99 * torch.softmax(world.rssm.prior_logits(latent.deter), -1) + 0.01 / 4
    kl = (posterior * (posterior / prior).log()).sum((-1, -2))
    close(losses["dynamics"], kl.detach())
    close(losses["representation"], kl.detach())


def test_losses_compare_each_step_with_what_arrived_with_it():
    world, batch = make_world(), make_batch(make_world())
    shake(world)
    before = world.loss(batch, uniform(3, 6, 4))[2]
    reward, terminal = batch.reward.clone(), batch.terminal.clone()
    reward[1, 3] += 1
    terminal[2, 4] = True
    after = world.loss(replace(batch, reward=reward, terminal=terminal), uniform(3, 6, 4))[2]
    changed = {name: (before[name] != after[name]).nonzero().tolist() for name in before}
    assert {name: where for name, where in changed.items() if where} == {"reward": [[1, 3]], "continue": [[2, 4]]}


# --- who is trained by which loss ---


def trained(world: MultimodalWorldModel, loss: Tensor) -> set[str]:
    """The parts of the world model that receive a gradient."""
    named = dict(world.named_parameters())
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=True)
    moved = [name for name, gradient in zip(named, gradients, strict=True) if gradient is not None and gradient.any()]
    parts = set()
    for name in moved:
        module, child = name.split(".")[:2]
        if module == "rssm":
            core = not child.startswith(("prior", "posterior"))
            parts.add("core" if core else child.split("_")[0])
        else:
            parts.add(module)
    return parts


STATE = {"encoders", "core", "posterior"}


@pytest.mark.parametrize("steps", [1, 5])
def test_each_loss_trains_its_own_parts(steps):
    world = make_world(VECTORS | IMAGE, free_nats=0.0)
    shake(world)
    losses = world.loss(make_batch(world, steps=steps), uniform(3, steps, 4))[2]
    owners = {name: trained(world, loss.mean()) for name, loss in losses.items()}
    for key in VECTORS | IMAGE:
        assert owners[f"recon_{key}"] == STATE | {"decoders"}
    assert owners["reward"] == STATE | {"reward_head"}
    assert owners["continue"] == STATE | {"continue_head"}
    assert owners["representation"] == STATE
    earlier = {"encoders", "posterior"} if steps > 1 else set()
    assert owners["dynamics"] == {"core", "prior"} | earlier


def test_below_the_free_nats_neither_side_is_trained():
    world = make_world(free_nats=100.0)
    shake(world)
    losses = world.loss(make_batch(world), uniform(3, 6, 4))[2]
    assert not trained(world, losses["dynamics"].mean() + losses["representation"].mean())


# --- memory ---


@pytest.mark.usefixtures("both_ways")
def test_gradient_checkpointing_changes_memory_and_nothing_else():
    observation = IMAGE | {"speed": ObservationSpec((3,), "float32")}

    def learn(thrifty: bool) -> tuple[dict[str, Tensor], list[Tensor], int]:
        world, kept = make_world(observation, gradient_checkpointing=thrifty), []
        shake(world)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes) or x, lambda x: x):
            latent, _, losses = world.loss(make_batch(world), uniform(3, 6, 4))
        total = torch.stack([loss.mean() for loss in losses.values()]).sum() + latent.features.sum()
        return losses, list(torch.autograd.grad(total, list(world.parameters()))), sum(kept)

    losses, gradients, kept = learn(thrifty=False)
    same_losses, same_gradients, less = learn(thrifty=True)
    assert same_losses.keys() == losses.keys()
    for name, loss in losses.items():
        close(same_losses[name], loss, 1e-5)
    for mine, theirs in zip(same_gradients, gradients, strict=True):
        close(mine, theirs, 1e-4)
    assert less < kept / 4


# --- context ---


def test_a_batch_continues_from_its_stored_context_and_its_action():
    world, batch = make_world(), make_batch(make_world())
    shake(world)
    before = world.observe(batch, uniform(3, 6, 4))[0]
    contexts = [
        replace(batch, context_action=batch.context_action.roll(1, -1)),
        replace(batch, context_latent=batch.context_latent | {"deter": batch.context_latent["deter"] + 1}),
        replace(batch, context_latent=batch.context_latent | {"stoch": 3 - batch.context_latent["stoch"]}),
    ]
    for context in contexts:
        assert not torch.equal(world.observe(context, uniform(3, 6, 4))[0].deter[:, 0], before.deter[:, 0])
        fresh = replace(context, first=torch.ones(3, 6, dtype=torch.bool))
        again = replace(batch, first=torch.ones(3, 6, dtype=torch.bool))
        first = [world.observe(each, uniform(3, 6, 4))[0].deter for each in (fresh, again)]
        assert torch.equal(first[0][:, 0], first[1][:, 0])


def test_a_stored_latent_is_the_latent():
    world = make_world()
    latent = world.observe(make_batch(world), uniform(3, 6, 4))[0].detach()
    packed = world.pack(latent)
    described = {name: (tuple(value.shape[2:]), str(value.dtype)[6:]) for name, value in packed.items()}
    assert described == world.stored
    deter, stoch = world.unpack(packed)
    assert torch.equal(deter, latent.deter) and torch.equal(stoch, latent.stoch)


def test_the_stored_class_255_is_a_group_of_zeros():
    world = make_world()
    stored = {"deter": torch.zeros(1, 16), "stoch": torch.full((1, 4), 255, dtype=torch.uint8)}
    assert not world.unpack(stored)[1].any()
