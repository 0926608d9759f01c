"""Several models are paid for where they differ: not for noise, of which all learn the mean."""

from __future__ import annotations

from dataclasses import replace

import torch

from reverie.behavior.intrinsic.disagreement import Disagreement, DisagreementOptions, spread
from reverie.behavior.intrinsic.icm import Icm, IcmOptions
from tests.core import close
from tests.intrinsic import dream_of, nothing, seen_of, setting, states


def test_the_variance_is_unbiased_and_its_mean_is_over_features():
    close(spread(torch.tensor([[0.0, 0.0], [2.0, 4.0]])), 5.0)


def test_members_differ_from_the_start_and_each_learns_from_the_pairs_that_belong_together():
    torch.manual_seed(0)
    models, phi = Disagreement(DisagreementOptions(members=3), setting()), torch.randn(1, 3, 2, requires_grad=True)
    seen = seen_of(phi, torch.rand(1, 2, 3), joined=torch.tensor([[True, False]]))
    foreseen = models.foresee(seen.latent.features[:, :-1], seen.action)
    assert foreseen.shape == (3, 1, 2, 2) and bool((foreseen.var(0) > 0).all())
    loss, metrics = models.loss(seen, nothing())
    expected = (foreseen[:, 0, 0] - phi[0, 1]).square().mean(-1).detach()
    close(loss, expected.sum())
    close(metrics["disagreement_loss"], expected.mean())
    loss.backward()
    assert phi.grad is None and all(parameter.grad.any() for parameter in models.members.parameters())


def test_an_edge_is_paid_for_its_own_state_and_action():
    models, action = Disagreement(DisagreementOptions(), setting()), torch.rand(1, 2, 3)
    dream, none = dream_of(action, 3), torch.zeros(1, 3, 0)
    reward = models.reward(dream, none)
    close(reward, spread(models.foresee(dream.latent.features[:, :-1], action)).detach())
    changed = models.reward(replace(dream, action=torch.cat([action[:, :1], 1 - action[:, 1:]], 1)), none)
    assert torch.equal(changed[:, 0], reward[:, 0]) and changed[0, 1] != reward[0, 1]


def test_noise_that_nobody_can_foresee_fools_a_forward_model_and_not_a_crowd():
    """Four features of variance one, thrown anew at every step: the error stays, the disagreement goes."""
    torch.manual_seed(0)
    place = setting(outcome=4)
    models, icm = Disagreement(DisagreementOptions(), place), Icm(IcmOptions(), place)
    optimizer = torch.optim.Adam([*models.parameters(), *icm.parameters()], 0.01)
    dream, action = dream_of(torch.rand(32, 3, 3), 4), torch.rand(32, 3, 3)
    paid = []
    for step in range(300):
        seen = seen_of(torch.randn(32, 4, 4).sign(), action)
        seen = replace(seen, latent=states(32, 4, seed=step))
        optimizer.zero_grad()
        (models.loss(seen, nothing())[0] + icm.loss(seen, nothing())[0]).backward()
        optimizer.step()
        with torch.no_grad():
            paid.append([models.reward(dream, seen.phi).mean(), icm.reward(dream, seen.phi).mean()])
    crowd, error = torch.tensor(paid).T
    assert crowd[-20:].mean() < 0.1 * crowd.max()
    assert error[-20:].mean() > 0.5 * 4 * 0.95
