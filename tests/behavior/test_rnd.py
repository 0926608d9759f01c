"""What was seldom seen is paid, and the network that never changes never does."""

from __future__ import annotations

import torch

from reverie.behavior.intrinsic.rnd import Rnd
from tests.core import close
from tests.intrinsic import dream_of, nothing, seen_of, setting


def test_what_was_seen_pays_less_than_what_was_not():
    torch.manual_seed(0)
    rnd, known, unknown = Rnd(setting(outcome=4)), torch.randn(2, 8, 4), torch.randn(2, 8, 4)
    optimizer, before = torch.optim.Adam(rnd.parameters(), 0.01), [rnd.first.clone(), rnd.second.clone()]
    for _ in range(150):
        optimizer.zero_grad()
        loss, metrics = rnd.loss(seen_of(known), nothing())
        loss.backward()
        optimizer.step()
    dream = dream_of(torch.zeros(2, 7, 3), 8)
    seen, new = rnd.reward(dream, known), rnd.reward(dream, unknown)
    assert seen.mean() < 0.1 * new.mean()
    assert all(map(torch.equal, before, (rnd.first, rnd.second)))
    close(metrics["rnd_loss"], rnd.error(known).mean().detach(), rtol=0.2)


def test_an_edge_is_paid_for_where_it_leads():
    rnd, outcome = Rnd(setting(outcome=4)), torch.randn(1, 3, 4)
    close(rnd.reward(dream_of(torch.zeros(1, 2, 3), 3), outcome), rnd.error(outcome)[:, 1:].detach())


def test_features_are_not_drawn_to_what_is_easily_foretold():
    phi = torch.randn(1, 3, 4, requires_grad=True)
    Rnd(setting(outcome=4)).loss(seen_of(phi), nothing())[0].backward()
    assert phi.grad is None
