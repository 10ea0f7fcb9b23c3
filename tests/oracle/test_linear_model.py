"""On a linear model the optimum is known: every gradient attack reaches it, no attack passes it."""

import pytest
import torch

from seawall.attacks.apgd import APGD
from seawall.attacks.pgd import PGD
from seawall.registry import build, entries
from seawall.rng import Keys
from seawall.testing.fixtures import accuracy, ground_batch, linear_model, worst_accuracy
from seawall.threat.model import ThreatModel
from seawall.threat.region import Patch

THREATS = {
    "plain": ThreatModel("linf", 0.02),
    "bounds": ThreatModel("linf", 0.05, low=0.26, high=0.34),
    "per band": ThreatModel("linf", (0.01, 0.04)),
    "one band in a patch": ThreatModel("linf", 0.08, bands=(1,), region=Patch(2, 2, 8, 8)),
    "only brighter": ThreatModel("linf", 0.05, sign="up"),
}
STRONG = [e for e in entries("attack") if not e.traits & {"weak", "black-box", "targeted", "min-norm"}]


def test_the_closed_form_is_the_margin_rule() -> None:
    model, batch, eps = linear_model(), ground_batch(), 0.02
    logits = model(batch.image).detach()
    sign = 2 * batch.label.clamp(0, 1) - 1
    margin = (logits[:, 1] - logits[:, 0]) * sign
    reach = eps * (model.weight[1] - model.weight[0]).abs().sum().detach()
    stands = (margin > reach) & batch.valid
    wanted = stands.flatten(1).sum(1) / batch.valid.flatten(1).sum(1)
    assert torch.allclose(worst_accuracy(model, batch, ThreatModel("linf", eps))[0], wanted)


@pytest.mark.parametrize("threat", THREATS.values(), ids=THREATS)
@pytest.mark.parametrize("entry", STRONG, ids=lambda e: e.name)
def test_gradient_attacks_reach_the_optimum(entry: object, threat: ThreatModel) -> None:
    model, batch = linear_model(), ground_batch(size=16)
    attack = build("attack", entry.name, dict(entry.smoke))  # type: ignore[attr-defined]
    adv = attack(model, batch, threat, Keys(0, batch.chips))  # type: ignore[operator]
    assert torch.allclose(accuracy(model, batch, adv), worst_accuracy(model, batch, threat)[0], atol=1e-6)


@pytest.mark.parametrize("entry", list(entries("attack")), ids=lambda e: e.name)
def test_no_attack_passes_the_optimum(entry: object) -> None:
    model, batch = linear_model(), ground_batch(size=16, seed=5)
    for eps in (0.01, 0.03):
        threat = ThreatModel("linf", eps)
        attack = build("attack", entry.name, dict(entry.smoke))  # type: ignore[attr-defined]
        adv = attack(model, batch, threat, Keys(0, batch.chips))  # type: ignore[operator]
        assert bool((accuracy(model, batch, adv) >= worst_accuracy(model, batch, threat)[0] - 1e-6).all())


def test_an_unbounded_budget_leaves_nothing() -> None:
    model, batch = linear_model(), ground_batch()
    for attack in (PGD(), APGD(steps=20)):
        adv = attack(model, batch, ThreatModel("linf", 10.0), Keys(0, batch.chips))
        assert not accuracy(model, batch, adv).any()
