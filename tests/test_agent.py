from __future__ import annotations

import io
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import reverie.agent
from reverie import learned_rates, native, optim
from reverie.agent import Agent
from reverie.behavior.actor_critic import ActorCritic, BehaviorOptions
from reverie.behavior.intrinsic import EmpowermentOptions, IntrinsicOptions, PayOptions
from reverie.behavior.objective import ObjectiveOptions
from reverie.behavior.ppo import Means
from reverie.behavior.streams import Stream
from reverie.errors import StoredDataError
from reverie.imagine import imagine
from reverie.learned_rates import MetaOptions, RateOptions
from reverie.optim import OptimizerOptions
from reverie.run import checkpoint
from reverie.types import ActionPart, Batch, ObservationSpec
from reverie.world.modality import text
from tests import core
from tests.core import (
    CHOICE,
    CONSTANT,
    FLAT,
    IMAGE,
    ONE_PASS,
    PASSES,
    PLANNED,
    SENSES,
    STEER,
    VECTORS,
    close,
    flat_view,
    make_agent,
    make_batch,
    record,
    shake,
    step_of,
    values,
)


def changed(agent: Agent, before: dict[str, Tensor]) -> set[str]:
    """The parts of the agent whose parameters or statistics differ from before."""
    state = agent.state_dict()
    return {name.rpartition(".")[0] for name, value in state.items() if not torch.equal(value, before[name])}


# --- playing ---


@pytest.mark.parametrize("action", [CHOICE, STEER])
def test_acting_sees_what_learning_sees(action):
    agent = make_agent(VECTORS | IMAGE, action)
    shake(agent)
    carry, carries, steps = agent.initial(3), [], [step_of(agent, seed=t, first=t in (0, 3)) for t in range(5)]
    for step in steps:
        chosen, carry = agent.act(step, carry)
        assert chosen.shape == (3, agent.action_width) and chosen.dtype == np.float32
        close(carry.action, torch.as_tensor(chosen))
        carries.append(carry)
    generator = torch.Generator().manual_seed(0)  # the agent's own generator starts like this
    noise = [torch.rand(3, 4 + agent.behavior.worker.distribution.noise, generator=generator)[:, :4] for _ in steps]
    batch = Batch(
        obs={key: torch.stack([torch.as_tensor(step.obs[key]) for step in steps], 1) for key in steps[0].obs},
        action=torch.stack([carry.action for carry in carries], 1),
        first=torch.as_tensor(np.stack([step.first for step in steps], 1)),
        context_action=torch.randn(3, agent.action_width),
        context_latent={"deter": torch.randn(3, 16), "stoch": torch.ones(3, 4, dtype=torch.uint8)},
        **{name: torch.zeros(3, 5, dtype=torch.bool) for name in ("last", "terminal")},
        reward=torch.zeros(3, 5),
        slot=torch.zeros(3, 5, dtype=torch.long),
    )
    latent = agent.world.observe(batch, torch.stack(noise, 1))[0].detach()
    for t, carry in enumerate(carries):
        close(carry.latent.deter, latent.deter[:, t])
        close(carry.latent.logits, latent.logits[:, t])
        assert torch.equal(carry.latent.stoch, latent.stoch[:, t])


def test_an_action_depends_on_what_is_seen_now():
    agent = make_agent()
    shake(agent, 0.5)
    carry = agent.initial(3)
    acts = [agent.act(step_of(agent, seed=seed), carry, torch.Generator().manual_seed(7))[1] for seed in (0, 0, 1)]
    assert torch.equal(acts[0].latent.logits, acts[1].latent.logits)
    assert not torch.equal(acts[0].latent.logits, acts[2].latent.logits)


def test_evaluation_with_its_own_generator_leaves_no_trace():
    agent, twin = make_agent(), make_agent()
    agent.act(step_of(agent), agent.initial(3), torch.Generator().manual_seed(3))
    assert np.array_equal(agent.act(step_of(agent), agent.initial(3))[0], twin.act(step_of(twin), twin.initial(3))[0])


def test_without_chance_the_action_is_the_likeliest_and_the_random_numbers_go_on_as_ever():
    agent = make_agent()
    shake(agent, 0.5)
    generators = [torch.Generator().manual_seed(7) for _ in range(2)]
    drawn, chosen = (
        agent.act(step_of(agent), agent.initial(3), generator, deterministic)[1]
        for generator, deterministic in zip(generators, (False, True), strict=True)
    )
    worker = agent.behavior.worker
    policy = worker.policy(torch.cat([chosen.latent.features, chosen.goal.target], -1))
    assert torch.equal(chosen.action, worker.distribution.mode(policy))
    assert torch.equal(chosen.latent.features, drawn.latent.features)
    assert torch.equal(*(generator.get_state() for generator in generators))


def test_an_agent_is_decided_by_its_seed_alone():
    torch.manual_seed(1)
    agent = make_agent(seed=4)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    twin, other = make_agent(seed=4), make_agent(seed=5)
    assert not changed(agent, values(twin)) and changed(agent, values(other))
    torch.manual_seed(1)
    make_agent(seed=9)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("behavior", [ONE_PASS, PASSES])
def test_without_a_manager_random_numbers_are_drawn_for_world_and_policy_alone(behavior):
    agent, act, learn = make_agent(behavior=behavior), *(torch.Generator().manual_seed(seed) for seed in (0, 1))
    carry = agent.initial(3)
    for _ in range(2):
        carry = agent.act(step_of(agent), carry)[1]
        torch.rand(3, 4 + 1, generator=act)
        agent.learn(make_batch(agent.world))
        torch.rand(3, 6, 4, generator=learn)
        torch.rand(4, 18, 1 + 4, generator=learn)
        for _ in range(behavior.epochs if behavior.minibatches > 1 else 0):
            torch.randperm(18 * 4, generator=learn), torch.randperm(3 * 5, generator=learn)
    assert torch.equal(agent.generators["act"].get_state(), act.get_state())
    assert torch.equal(agent.generators["learn"].get_state(), learn.get_state())


# --- learning ---


def test_starts_are_the_last_steps_of_each_sequence():
    agent, few = make_agent(), make_agent(starts=2)
    latent = agent.world.loss(make_batch(agent.world), torch.rand(3, 6, 4))[0]
    assert torch.equal(agent.starts(latent).deter, latent.deter.flatten(0, 1))
    assert torch.equal(few.starts(latent).stoch, latent.stoch[:, 4:].flatten(0, 1))
    assert not few.starts(latent).deter.requires_grad


@pytest.mark.parametrize("hierarchy", [FLAT, PLANNED])
def test_what_has_never_learned_can_be_saved(tmp_path, hierarchy):
    agent, path = make_agent(hierarchy=hierarchy), tmp_path / "latest.pt"
    checkpoint.save(path, agent.checkpoint())  # which refuses what is not finite
    kept = checkpoint.load(path)["model_state"]
    assert len(kept) == len(agent.state_dict())
    assert all(torch.equal(kept[name], value) for name, value in agent.state_dict().items())


@pytest.mark.parametrize(
    ("hierarchy", "fixed"),
    [
        (
            FLAT,
            {"behavior.worker.entropy_weight", "behavior.worker.mixer.advantage_std", "behavior.worker.mixer.started"},
        ),
        (
            PLANNED,
            {"behavior.worker.entropy_weight", "behavior.worker.mixer.started", "behavior.manager.mixer.started"},
        ),
    ],
)
def test_learning_trains_everything_and_reports_fresh_latents(hierarchy, fixed):
    agent = make_agent(VECTORS | IMAGE, optimizer=CONSTANT, behavior=PASSES, hierarchy=hierarchy)
    batch = make_batch(agent.world)
    for _ in range(2):
        before = values(agent)
        metrics, stored = agent.learn(batch)
    still = {name for name in before if torch.equal(agent.state_dict()[name], before[name])}
    assert still == fixed
    assert stored["deter"].shape == (3, 6, 16) and stored["stoch"].dtype == torch.uint8
    assert all(value.ndim == 0 and bool(value.isfinite()) and not value.requires_grad for value in metrics.values())
    assert {"world/recon_loss", "world/kl_loss", "policy/policy_loss", "world/grad_norm", "actor/lr"} <= metrics.keys()
    parts = [metrics[f"world/recon_{key}"] for key in VECTORS | IMAGE]
    close(metrics["world/recon_loss"], torch.stack(parts).sum())


WAITING = {"aten::_local_scalar_dense", "aten::lift_fresh", "aten::nonzero", "aten::equal", "aten::unique_dim"}
"""Numbers read from a device, or put there from Python: for both a GPU would be waited for."""


class Waits(TorchDispatchMode):
    """Notes every operation that waits for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.found.update({function._schema.name} & WAITING)
        return function(*args, **(kwargs or {}))


LEARNED = MetaOptions(enabled=True, warmup=0)
EVERY_NUMBER = ObjectiveOptions(learned=["entropy", "return_lambda", "discount", "weights"])


CURIOUS = IntrinsicOptions(
    curiosity=PayOptions(kind="icm"), empowerment=EmpowermentOptions(kind="empowerment"), every=1
)
SKILLED = IntrinsicOptions(empowerment=EmpowermentOptions(kind="skills"), every=1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hierarchy": PLANNED},
        {"hierarchy": PLANNED, "meta": LEARNED},
        {"intrinsic": CURIOUS},
        {"intrinsic": SKILLED, "hierarchy": PLANNED},
        {"intrinsic": CURIOUS, "behavior": PASSES.model_copy(update={"objective": EVERY_NUMBER})},
    ],
)
def test_learning_never_waits_for_the_device(changes, monkeypatch):
    monkeypatch.setattr(native, "_enabled", frozenset())
    monkeypatch.setattr(Means, "wants", lambda *arguments: True)  # as on a GPU
    for module in (learned_rates, optim):
        monkeypatch.setattr(module, "may_ask", lambda flag: False)
    monkeypatch.setattr(text, "depends_on_data", lambda tensor: False)
    agent = make_agent(IMAGE | VECTORS | SENSES, **{"behavior": PASSES} | changes)
    batch = make_batch(agent.world)
    with Waits() as waits:
        agent.learn(batch)
    assert not waits.found
    with waits:
        torch.as_tensor(1.0).item()
    assert waits.found == {"aten::lift_fresh": 1, "aten::_local_scalar_dense": 1}


@pytest.mark.usefixtures("both_ways")
def test_every_group_learns_its_rate_from_fresh_losses_and_says_so_at_every_update(monkeypatch):
    behavior = BehaviorOptions(epochs=2, minibatches=2, target_kl=1e9)
    meta = LEARNED.model_copy(update={"actor": RateOptions(rule="sign", offset=1.0)})
    agent = make_agent(behavior=behavior, hierarchy=PLANNED, optimizer=CONSTANT, meta=meta)
    groups = {"world", "manager_actor", "manager_critic", "actor", "critic", "goals"}
    rates, keys = [], []
    for seed in range(3):
        metrics, _ = agent.learn(make_batch(agent.world, seed=seed))
        keys.append(set(metrics))
        rates.append({name: float(metrics[f"meta/lr_{name}"]) for name in groups})
        assert metrics["meta/lr"] == metrics["meta/lr_world"]
    assert keys[0] == keys[1] == keys[2]
    assert rates[0]["world"] == pytest.approx(CONSTANT.rate) and len({rate["world"] for rate in rates}) == 3
    for name in ("manager_actor", "actor"):  # one pair a dream: not of the first, which no step preceded
        expected = [CONSTANT.rate * math.exp(0.05 * pairs) for pairs in range(3)]
        assert [rate[name] for rate in rates] == pytest.approx(expected)
    assert all(rates[2][name] != rates[0][name] for name in groups)


def test_a_level_that_does_not_learn_keeps_its_rate():
    hierarchy = PLANNED.model_copy(update={"goal_warmup": 2})
    agent = make_agent(hierarchy=hierarchy, optimizer=CONSTANT, meta=LEARNED)
    rates = []
    for seed in range(4):
        metrics, _ = agent.learn(make_batch(agent.world, seed=seed))
        rates.append([float(metrics[f"meta/lr_{name}"]) for name in ("world", "critic")])
    world, critic = zip(*rates, strict=True)
    assert len(set(world)) == 4 and critic[0] == critic[1] != critic[2]


def test_a_rate_that_is_not_to_be_learned_is_as_scheduled():
    meta = LEARNED.model_copy(update={"actor": RateOptions(rule="fixed")})
    agent = make_agent(optimizer=CONSTANT, meta=meta)
    assert agent.optimizers["actor"].factor is None and agent.optimizers["critic"].factor is not None
    metrics, _ = agent.learn(make_batch(agent.world))
    assert "meta/lr_actor" not in metrics and "meta/lr_critic" in metrics


def test_the_first_losses_of_a_fresh_agent_are_known():
    agent = make_agent()
    metrics, _ = agent.learn(make_batch(agent.world))
    close(metrics["world/reward"], 5.5412635)
    for name in ("policy/return", "policy/value", "policy/dream_reward", "policy/advantage_std"):
        assert metrics[name] == 0
    assert 0 < metrics["policy/value_loss"] < 11.082527


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize(("precision", "hierarchy"), [("bf16", FLAT), ("fp16", FLAT), ("bf16", PLANNED)])
def test_half_precision_points_the_gradient_the_same_way_and_leaves_everything_single(precision, hierarchy):
    gradients = []
    for choice in ("fp32", precision):
        still = OptimizerOptions(rate=0)
        agent = make_agent(IMAGE | VECTORS, precision=choice, optimizer=still, hierarchy=hierarchy)
        shake(agent, 0.05)
        batch = make_batch(agent.world)
        gradients.append(torch.zeros_like(agent.optimizers["world"].gradient))
        for _ in range(8):  # rounding lets a sample fall into another class now and then
            metrics, fresh = agent.learn(batch)
            assert not metrics["world/skipped"]
            gradients[-1] += agent.optimizers["world"].gradient
        assert {tensor.dtype for tensor in agent.parameters()} == {torch.float32} == {fresh["deter"].dtype}
        assert {entry.dtype for entry in metrics.values()} == {torch.float32}
    mine, whole = gradients[1], gradients[0]
    assert float(mine @ whole / mine.norm() / whole.norm()) > 0.99
    assert float(mine.norm() / whole.norm()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("units", [16, 512])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("hierarchy", [FLAT, PLANNED, PLANNED.model_copy(update={"goal_mix": 0.5})])
def test_the_first_minibatch_meets_the_policy_that_dreamed(hierarchy, precision, units, monkeypatch):
    monkeypatch.setattr(core, "SMALL", core.SMALL.model_copy(update={"units": units}))
    rate = CONSTANT.model_copy(update={"rate": 0.02 if units == 16 else 0.002})
    agent = make_agent(behavior=PASSES, optimizer=rate, hierarchy=hierarchy, precision=precision)
    shake(agent, 1.6 / units)
    for _ in range(3):
        metrics, _ = agent.learn(make_batch(agent.world))
        for level in agent.behavior.levels:
            assert metrics[f"{level.name}/ratio_first"] < 1e-4
    for level in agent.behavior.levels:
        assert metrics[f"{level.name}/ratio_error"] > 1e-2 and metrics[f"{level.name}/kl"] > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_products_of_the_kernels_are_in_the_chosen_precision(precision, monkeypatch):
    if not native.version():
        pytest.skip("no C compiler")
    agent, used, call = make_agent(IMAGE | VECTORS, precision=precision, hierarchy=PLANNED), {}, native.call

    def note(kernel, *arguments, bf16=None):
        used.setdefault(kernel, set()).add(native.uses_bf16() if bf16 is None else bf16)
        call(kernel, *arguments, bf16=bf16)

    monkeypatch.setattr(native, "call", note)
    agent.learn(make_batch(agent.world))
    stacks, loops = {"mlp_forward", "mlp_backward", "two_hot_mean"}, {"observe_forward", "observe_backward", "dream"}
    products = stacks | loops
    with agent.precision():
        bf16 = native.uses_bf16()
    assert products <= used.keys()
    assert {kernel: used[kernel] for kernel in products} == {kernel: {bf16} for kernel in products}


def flat(network: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@pytest.mark.parametrize(
    ("hierarchy", "steps"),
    [(FLAT, {"world": 1, "critic": 8}), (PLANNED, {"world": 1, "goals": 1, "manager_critic": 4, "critic": 8})],
)
def test_slow_critics_scales_and_controllers_move_once_per_update(monkeypatch, hierarchy, steps):
    calls = Counter()
    names = "update_slow_critic", "adapt_entropy", "compute_targets"
    for name in names:
        method = getattr(ActorCritic, name)
        monkeypatch.setattr(
            ActorCritic, name, lambda level, *a, m=method, n=name: (calls.update([(n, level.name)]), m(level, *a))[1]
        )
    agent = make_agent(behavior=PASSES, optimizer=CONSTANT, hierarchy=hierarchy)
    shake(agent)
    slow = [flat(level.slow_critic) for level in agent.behavior.levels]
    agent.learn(make_batch(agent.world))
    assert calls == {
        (name, level.name): 1
        for level in agent.behavior.levels
        for name in ("update_slow_critic", "adapt_entropy", "compute_targets")
    }
    for level, before in zip(agent.behavior.levels, slow, strict=True):
        close(flat(level.slow_critic), before + 0.02 * (flat(level.critic) - before), atol=1e-7)
    assert {name: int(agent.optimizers[name].count) for name in steps} == steps
    if hierarchy.enabled:
        close(agent.behavior.manager.entropy_weight, 3e-3 / 1.1, atol=0)
        close(agent.behavior.goals.beta, 1 / 1.1)


def test_learning_continues_without_a_batch_that_is_not_finite():
    agent = make_agent(optimizer=CONSTANT)
    batch = make_batch(agent.world)
    reward = batch.reward.clone()
    reward[0, 3] = float("nan")
    agent.learn(batch)
    before = values(agent)
    metrics, _ = agent.learn(replace(batch, reward=reward))
    assert metrics["world/skipped"] == 1 and metrics["critic/skipped"] == 1
    assert not any(name.startswith(("world", "behavior.worker.critic")) for name in changed(agent, before))
    assert agent.learn(batch)[0]["world/skipped"] == 0


def test_the_world_model_learns_a_batch_that_stays_the_same():
    agent = make_agent(VECTORS | IMAGE, optimizer=OptimizerOptions(warmup=0, rate=0.01), starts=2, horizon=2)
    batch = make_batch(agent.world, rows=2, steps=4)
    colours = batch.obs["image"][:, :, :1, :1].expand(2, 4, 8, 8, 3)
    first = torch.tensor([True, False, False, False]).expand(2, 4)
    batch = replace(batch, reward=torch.ones(2, 4), first=first, obs=batch.obs | {"image": colours})
    history = [agent.learn(batch)[0] for _ in range(120)]
    early, late = (
        {name: sum(metrics[name].item() for metrics in part) / len(part) for name in history[0]}
        for part in (history[:3], history[-10:])
    )
    for key in VECTORS | IMAGE:
        assert late[f"world/recon_{key}"] < 0.25 * early[f"world/recon_{key}"], key
    assert 0.6654 <= late["world/reward"] < 0.70  # the entropy of a reward of one between its two bins
    assert 0.0204 <= late["world/continue"] < 0.03
    assert late["world/kl_loss"] >= 1.0 and not any(metrics["world/skipped"] for metrics in history)


def test_the_behaviors_losses_train_the_behavior_and_only_replayed_values_reach_the_world():
    agent = make_agent(VECTORS | IMAGE)
    shake(agent)
    batch, (world, level) = make_batch(agent.world), (agent.world, agent.behavior.worker)
    latent, _, _ = world.loss(batch, torch.rand(3, 6, 4))
    dream = imagine(world, agent.behavior, agent.starts(latent), 4, agent.generators["learn"])
    rollout = flat_view(level, dream)
    targets = level.compute_targets(rollout)
    replay = level.replay_value(latent.features, batch, targets.returns[:, 0, 0])
    actor, critic, _ = record(level, rollout, targets, replay)
    losses = actor.losses[0] | critic.losses[0] | {"replay_value of the world": level.replay_value_loss(replay)}
    named = {name: parameter for name, parameter in agent.named_parameters() if parameter.requires_grad}
    owners = {}
    for name, loss in losses.items():
        gradients = torch.autograd.grad(loss.mean(), list(named.values()), allow_unused=True, retain_graph=True)
        pairs = zip(named, gradients, strict=True)
        trained = [key for key, gradient in pairs if gradient is not None and gradient.any()]
        owners[name] = {".".join(key.removeprefix("behavior.").split(".")[:3]) for key in trained}
    parts = {name: {".".join(part.split(".")[:2]) for part in found} for name, found in owners.items()}
    assert parts["policy"] == {"worker.actor"}
    assert parts["value"] == parts["replay_value"] == {"worker.critic"}
    assert parts["replay_value of the world"] == {"worker.critic", "world.encoders", "world.rssm"}
    assert not any("prior" in part for part in owners["replay_value of the world"])


# --- saving ---


@pytest.mark.parametrize("observation", [VECTORS, VECTORS | IMAGE | SENSES])
@pytest.mark.parametrize("hierarchy", [FLAT, PLANNED.model_copy(update={"goal_warmup": 3, "goal_mix": 0.5})])
def test_a_restored_agent_goes_on_bit_for_bit(hierarchy, observation):
    choices = {"behavior": PASSES, "optimizer": CONSTANT, "hierarchy": hierarchy}
    agent, twin = (make_agent(observation, seed=seed, **choices) for seed in (0, 1))
    batches = [make_batch(agent.world, seed=seed) for seed in range(4)]
    for batch in batches[:2]:
        agent.learn(batch)
    agent.act(step_of(agent), agent.initial(3))
    file = io.BytesIO()
    torch.save(agent.checkpoint(), file)
    file.seek(0)
    twin.restore(torch.load(file, weights_only=True))
    for batch in batches[2:]:
        mine, other = agent.learn(batch)[0], twin.learn(batch)[0]
        assert mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)
    assert not changed(agent, values(twin))
    acts = [each.act(step_of(each), each.initial(3))[0] for each in (agent, twin)]
    assert np.array_equal(*acts)


def test_a_checkpoint_does_not_change_with_further_learning():
    agent = make_agent(optimizer=CONSTANT)
    agent.learn(make_batch(agent.world))
    state, before = agent.checkpoint(), values(agent)
    agent.learn(make_batch(agent.world))
    assert all(torch.equal(value, before[name]) for name, value in state["model_state"].items())


@pytest.mark.parametrize(
    ("observation", "action", "complaint"),
    [
        (VECTORS | IMAGE, CHOICE, r"observation image is missing in it and uint8\[8, 8, 3\] here"),
        (VECTORS | {"gear": ObservationSpec((), "int64", 4)}, CHOICE, r"gear is int64\[\] of 3 classes in it and .* 4"),
        (VECTORS, (ActionPart("choice", 4, True),), "action choice is 3 classes in it and 4 classes here"),
        (VECTORS, (ActionPart("choice", 3, False),), "action choice is 3 classes in it and 3 numbers here"),
    ],
)
def test_a_checkpoint_of_another_environment_is_refused_in_one_line_and_changes_nothing(observation, action, complaint):
    agent = make_agent(observation, action)
    before = values(agent)
    for take in (agent.restore, agent.restore_model):
        with pytest.raises(StoredDataError, match=f"^the checkpoint does not fit: .*{complaint}") as refusal:
            take(make_agent(seed=3).checkpoint())
        assert "\n" not in str(refusal.value)
    assert not changed(agent, before)


def test_a_checkpoint_of_another_size_is_refused():
    state = make_agent().checkpoint()
    state["model_state"]["world.reward_head.0.bias"] = torch.zeros(3)
    with pytest.raises(StoredDataError, match=r"tensor world\.reward_head\.0\.bias is \(3,\) in it and \(16,\) here"):
        make_agent().restore(state)


@pytest.mark.parametrize("section", ["spaces", "model_state", "generators", "world_optimizer", "critic_optimizer"])
def test_a_checkpoint_that_lacks_a_section_is_refused_and_changes_nothing(section):
    agent = make_agent()
    before, generator = values(agent), agent.generators["learn"].get_state()
    state = make_agent(seed=3).checkpoint()
    del state[section]
    with pytest.raises(StoredDataError, match=f"lacks {section}"):
        agent.restore(state)
    assert not changed(agent, before)
    assert torch.equal(agent.generators["learn"].get_state(), generator)


def test_an_optimizer_that_does_not_fit_is_found_before_anything_changes():
    agent = make_agent()
    before, state = values(agent), make_agent(seed=3).checkpoint()
    del state["critic_optimizer"]["square"]
    with pytest.raises(StoredDataError, match="optimizer 'critic'"):
        agent.restore(state)
    assert not changed(agent, before)


def test_random_numbers_of_another_device_begin_anew_with_a_warning(caplog):
    agent = make_agent()
    state = make_agent(seed=3).checkpoint()
    state["generators"] = {name: torch.zeros(16, dtype=torch.uint8) for name in state["generators"]}  # as CUDA has them
    agent.restore(state)
    assert "not bit-exact" in caplog.text


def test_an_agent_that_is_not_paid_for_the_task_learns_nothing_from_its_reward(monkeypatch):
    """Only the world model, which predicts it, may differ."""
    streams = {"policy": {"novelty": Stream(1.0, 100)}}
    monkeypatch.setattr(reverie.agent, "default_streams", lambda *options: streams)
    monkeypatch.setattr(Agent, "rewards", lambda agent, dream: {"novelty": dream.reward["extrinsic"] * 0 + 1})
    learned = []
    for reward in (0.0, 1.0):
        agent = make_agent(optimizer=CONSTANT)
        agent.world.options = agent.world.options.model_copy(update={"reward_scale": 0.0})
        agent.optimizers["world"].scales["reward"] = 0.0
        batch = make_batch(agent.world)
        metrics, _ = agent.learn(replace(batch, reward=batch.reward * 0 + reward))
        assert "replay_value" not in agent.optimizers["critic"].scales
        assert "policy/return_novelty" in metrics and "policy/return" not in metrics
        learned.append(agent.state_dict())
    for name, value in learned[0].items():
        assert torch.equal(value, learned[1][name]), name
