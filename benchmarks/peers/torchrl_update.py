"""One update of TorchRL's DreamerV3: the network put together from its public parts, its loss, optimizer and stepper.

The stepper chooses for itself: eager and in single precision on a CPU. Images are left out, because TorchRL's image
encoder strides where the published one pools, and so has a tenth of the work.
"""

from __future__ import annotations

import clock
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Composite, OneHot, Unbounded
from torchrl.envs.model_based import DreamerEnv
from torchrl.modules import (
    DreamerV3DiscreteActor,
    DreamerV3MLP,
    RSSMPosteriorV3,
    RSSMPriorV3,
    RSSMRolloutV3,
    SymExpTwoHot,
    WorldModelWrapper,
)
from torchrl.objectives import (
    DreamerV3ActorLoss,
    DreamerV3Loss,
    DreamerV3ModelLoss,
    DreamerV3ValueLoss,
    SoftUpdate,
    ValueEstimators,
    symlog,
)
from torchrl.trainers.algorithms import DreamerV3OptimizationStepper, DreamerV3Optimizer


class Heads:
    """The networks that read a latent: the belief before the state, as published."""

    def __init__(self, task: clock.Task):
        sizes, layers = task["sizes"], task["config"]["behavior"]["layers"]
        self.width = sizes["deter"] + sizes["stoch"] * sizes["classes"]
        self.units, bins = sizes["units"], sizes["bins"]
        self.decoder = self.mlp(task["observation"]["shape"][0], sizes["layers"])
        self.reward, self.value = self.mlp(bins, 1, outscale=0.0), self.mlp(bins, layers, outscale=0.0)
        self.proceed = self.mlp(1, 1)
        self.actor = DreamerV3DiscreteActor(self.width, task["actions"], depth=layers, num_cells=self.units)
        self.bins = SymExpTwoHot(bins)

    def mlp(self, outputs: int, depth: int, outscale: float = 1.0) -> DreamerV3MLP:
        return DreamerV3MLP(self.width, outputs, depth=depth, num_cells=self.units, outscale=outscale)

    def two_hot(self, network: nn.Module, name: str, prefix: tuple[str, ...] = ()) -> TensorDictSequential:
        """Logits and their mean from a latent, under ``prefix``."""
        logits = (*prefix, f"{name}_logits")
        return TensorDictSequential(
            TensorDictModule(network, [(*prefix, "belief"), (*prefix, "state")], [logits]),
            TensorDictModule(self.bins, [logits], [(*prefix, name)]),
        )


def make_rssm(task: clock.Task) -> tuple[RSSMPriorV3, RSSMPosteriorV3]:
    """The block GRU with its prior, and the posterior."""
    sizes, actions = task["sizes"], task["actions"]
    shared = {
        "hidden_dim": sizes["hidden"],
        "rnn_hidden_dim": sizes["deter"],
        "num_categoricals": sizes["stoch"],
        "num_classes": sizes["classes"],
        "unimix": 0.01,
    }
    prior = RSSMPriorV3(
        action_shape=(actions,), action_dim=actions, recurrent_model="block_gru", num_blocks=sizes["blocks"], **shared
    )
    return prior, RSSMPosteriorV3(obs_embed_dim=sizes["units"], use_rms_norm=True, **shared)


def make_world(task: clock.Task, heads: Heads, prior: RSSMPriorV3, posterior: RSSMPosteriorV3) -> TensorDictSequential:
    """Everything that explains a batch, from observations to predictions."""
    sizes, latent = task["sizes"], [("next", "belief"), ("next", "state")]
    encoder = DreamerV3MLP(task["observation"]["shape"][0], None, depth=sizes["layers"], num_cells=sizes["units"])
    return TensorDictSequential(
        TensorDictModule(symlog, [("next", "observation")], [("next", "symlog")]),
        TensorDictModule(encoder, [("next", "symlog")], [("next", "encoded_latents")]),
        RSSMRolloutV3(
            TensorDictModule(
                prior,
                ["state", "belief", "action"],
                [("next", "prior_logits"), ("next", "state"), ("next", "belief")],
            ),
            TensorDictModule(
                posterior,
                [("next", "belief"), ("next", "encoded_latents")],
                [("next", "posterior_logits"), ("next", "state")],
            ),
        ),
        TensorDictModule(heads.decoder, latent, [("next", "reco_pixels")]),
        heads.two_hot(heads.reward, "reward", ("next",)),
        TensorDictModule(heads.proceed, latent, [("next", "continue_pred")]),
    )


def make_dream(task: clock.Task, heads: Heads, prior: RSSMPriorV3) -> DreamerEnv:
    """The environment that TorchRL imagines in."""
    sizes = task["sizes"]
    state, belief = sizes["stoch"] * sizes["classes"], sizes["deter"]
    step = TensorDictModule(prior, ["state", "belief", "action"], ["_", "state", "belief"])
    dream = DreamerEnv(WorldModelWrapper(step, heads.two_hot(heads.reward, "reward")), (state,), (belief,))
    dream.observation_spec = Composite(state=Unbounded(state), belief=Unbounded(belief))
    dream.state_spec = dream.observation_spec.clone()
    dream.action_spec, dream.reward_spec = OneHot(task["actions"]), Unbounded(1)
    return dream


def make_loss(task: clock.Task) -> DreamerV3Loss:
    """The whole agent, inside its loss."""
    heads, discount = Heads(task), 1 - 1 / task["config"]["behavior"]["horizon"]
    prior, posterior = make_rssm(task)
    model = DreamerV3ModelLoss(
        make_world(task, heads, prior, posterior),
        kl_mode="separate",
        unimix=0.01,
        lambda_continue=1.0,
        continue_target_scale=discount,
        num_reward_bins=task["sizes"]["bins"],
        detach_output=False,
    )
    model.set_keys(pixels="observation")
    value = heads.two_hot(heads.value, "state_value")
    actor = DreamerV3ActorLoss(
        heads.actor,
        value,
        make_dream(task, heads, prior),
        continuation_model=TensorDictSequential(
            TensorDictModule(heads.proceed, ["belief", "state"], ["continue_logit"]),
            TensorDictModule(nn.Sigmoid(), ["continue_logit"], ["continuation"]),
        ),
        imagination_horizon=task["config"]["agent"]["horizon"],
        use_reinforce=True,
    )
    actor.make_value_estimator(ValueEstimators.TDLambda, gamma=1.0, lmbda=0.95)  # the continue head has the discount
    critic = DreamerV3ValueLoss(
        value,
        value_loss="two_hot",
        num_value_bins=task["sizes"]["bins"],
        actor_loss=actor,
        slow_critic_regularization=1.0,
    )
    return DreamerV3Loss(model, actor, critic)


def make_batch(task: clock.Task) -> TensorDict:
    """Random sequences [B, T, ...] with the latents that they begin from."""
    replay, sizes = task["config"]["replay"], task["sizes"]
    shape = replay["batch_size"], replay["length"]
    ends = torch.rand(*shape, 1) < 0.02
    return TensorDict(
        {
            "state": torch.zeros(*shape, sizes["stoch"] * sizes["classes"]),
            "belief": torch.zeros(*shape, sizes["deter"]),
            "action": torch.eye(task["actions"])[torch.randint(task["actions"], shape)],
            "is_init": ends.roll(1, 1),
            "next": {
                "observation": torch.rand(*shape, *task["observation"]["shape"]),
                "reward": torch.rand(*shape, 1),
                "done": ends,
                "terminated": ends,
            },
        },
        shape,
    )


def main() -> None:
    """Times updates on one batch."""
    task = clock.task()
    torch.set_num_threads(task["config"]["run"]["threads"])
    loss, batch = make_loss(task), make_batch(task)
    trained = [parameter for parameter in loss.parameters() if parameter.requires_grad]
    stepper = DreamerV3OptimizationStepper(loss, DreamerV3Optimizer(trained), SoftUpdate(loss.value_loss, tau=0.02))
    clock.report(lambda: stepper.step(None, batch), task["seconds"], sum(parameter.numel() for parameter in trained))


if __name__ == "__main__":
    main()
