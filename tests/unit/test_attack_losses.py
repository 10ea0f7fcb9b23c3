"""Pixel losses against their closed forms."""

import math

import pytest
import torch
from torch import Tensor

from seawall.attacks.losses import (
    AttackLoss,
    BalancedCrossEntropy,
    CosineLoss,
    CosPGDLoss,
    CrossEntropy,
    JensenShannon,
    MaskedCrossEntropy,
    SegPGDLoss,
    SigmoidCount,
    SphericalLoss,
    TsallisCrossEntropy,
    not_yet_fooled,
)
from seawall.attacks.target import AttackTarget
from seawall.registry import build, entries

WITHOUT_ENTROPY = {"confident-wrong": {"certainty": 0.0}}
"""Its entropy moves a pixel away from the border between classes on either side of it."""


def ground(classes: int = 3, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(classes)
    logits = (torch.randn(2, classes, 5, 6, generator=draw, dtype=torch.float64) * scale).requires_grad_()
    label = torch.randint(0, classes, (2, 5, 6), generator=draw)
    return logits, label, torch.rand(2, 5, 6, generator=draw) > 0.3


def aim(label: Tensor, valid: Tensor, progress: float = 0.0, targeted: bool = False) -> AttackTarget:
    return AttackTarget(label, valid, targeted, None, progress)


def grad(loss: AttackLoss, logits: Tensor, there: AttackTarget) -> Tensor:
    return torch.autograd.grad(loss(logits, there).sum(), logits)[0]


@pytest.mark.parametrize("name", [entry.name for entry in entries("attack-loss")])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_finite_at_extreme_logits_and_shaped_like_pixels(name: str, targeted: bool, classes: int) -> None:
    for scale in (0.0, 1.0, 1e3):
        logits, label, valid = ground(classes, scale)
        logits = logits.float().detach().requires_grad_()
        value = build("attack-loss", name)(logits, aim(label, valid, 0.5, targeted))
        assert value.shape == label.shape and bool(value.isfinite().all())
        assert bool(torch.autograd.grad(value.sum(), logits)[0].isfinite().all())


@pytest.mark.parametrize("name", [entry.name for entry in entries("attack-loss")])
@pytest.mark.parametrize("targeted", [False, True])
def test_climbing_moves_the_label_the_right_way(name: str, targeted: bool) -> None:
    logits, label, valid = ground(3, 1.0)
    loss = build("attack-loss", name, WITHOUT_ENTROPY.get(name))
    g = grad(loss, logits, aim(label, valid, 0.0, targeted)).gather(1, label[:, None])
    assert bool((g >= -1e-12).all() if targeted else (g <= 1e-12).all()) and bool(g.any())


def test_seg_is_masked_at_first_and_nears_half_of_cross_entropy() -> None:
    logits, label, valid = ground()
    start = aim(label, valid)
    assert torch.allclose(SegPGDLoss()(logits, start), MaskedCrossEntropy()(logits, start))
    assert torch.allclose(SegPGDLoss()(logits, aim(label, valid, 1.0)), CrossEntropy()(logits, start) / 2)
    # step 4 of 10: wrong pixels weigh 3/20
    quarter = SegPGDLoss()(logits, aim(label, valid, 0.3)) / CrossEntropy()(logits, start)
    right = logits.argmax(1) == label
    assert torch.allclose(quarter[~right], torch.full_like(quarter[~right], 0.15))
    assert torch.allclose(quarter[right], torch.full_like(quarter[right], 0.85))


def test_cos_weight_is_p_over_its_norm() -> None:
    for classes in (2, 4):
        logits, label, valid = ground(classes)
        p = logits.softmax(1)
        own = p.gather(1, label[:, None])[:, 0]
        there = aim(label, valid)
        wanted = own / p.square().sum(1).sqrt() * CrossEntropy()(logits, there)
        assert torch.allclose(CosPGDLoss()(logits, there), wanted)
        if classes == 2:
            assert torch.allclose(p.square().sum(1), own**2 + (1 - own) ** 2)
        # the weight is constant: the gradient is the weighted cross-entropy's
        weight = (own / p.square().sum(1).sqrt()).detach()
        plain = grad(CrossEntropy(), logits, there)
        assert torch.allclose(grad(CosPGDLoss(), logits, there), weight[:, None] * plain)
        squashed = logits.sigmoid()
        other = squashed.gather(1, label[:, None])[:, 0] / squashed.norm(dim=1)
        assert torch.allclose(CosPGDLoss(True)(logits, there), other * CrossEntropy()(logits, there))
    targeted = aim(label, valid, targeted=True)
    assert torch.allclose(grad(CosPGDLoss(), logits, targeted), -(1 - weight)[:, None] * plain)


def test_js_closed_form_is_the_definition_and_its_gradient_vanishes_at_both_ends() -> None:
    logits, label, valid = ground()
    there = aim(label, valid)
    p = logits.softmax(1)
    hot = torch.nn.functional.one_hot(label, 3).movedim(-1, 1).double()
    middle = (p + hot) / 2
    wanted = 0.5 * (torch.xlogy(p, p / middle) + torch.xlogy(hot, hot / middle)).sum(1)
    got = JensenShannon()(logits, there)
    assert torch.allclose(got, wanted) and bool((got >= 0).all()) and bool((got <= math.log(2)).all())
    own = p.gather(1, label[:, None])
    slope = 0.5 * own * (own / (1 + own)).log() * (hot - p)
    assert torch.allclose(grad(JensenShannon(), logits, there), slope)
    for shift in (200.0, -200.0):  # the sum over classes gives NaN here
        far = (hot * shift).float().detach().requires_grad_()
        g = grad(JensenShannon(), far, there)
        assert bool(g.isfinite().all()) and float(g.abs().max()) < 1e-6


def test_tsallis_is_cross_entropy_at_one_and_weighs_by_a_power_of_p() -> None:
    logits, label, valid = ground()
    there = aim(label, valid, 0.4)
    assert torch.allclose(TsallisCrossEntropy(1.0, 1.0)(logits, there), CrossEntropy()(logits, there))
    own = logits.softmax(1).gather(1, label[:, None])[:, 0]
    for q in (-2.0, 0.0, 0.5, 2.0):
        assert torch.allclose(TsallisCrossEntropy(q, q)(logits, there), (1 - own ** (1 - q)) / (1 - q))
        weight = (own ** (1 - q)).detach()[:, None]
        assert torch.allclose(
            grad(TsallisCrossEntropy(q, q), logits, there), weight * grad(CrossEntropy(), logits, there)
        )
    moved = TsallisCrossEntropy()(logits, aim(label, valid, 2 / 3))  # q = 0 two thirds of the way
    assert torch.allclose(moved, 1 - own)


def test_masked_losses_have_no_gradient_on_fallen_pixels() -> None:
    logits, label, valid = ground()
    for targeted in (False, True):
        there = aim(label, valid, targeted=targeted)
        fallen = ~not_yet_fooled(logits, there)
        for loss in (MaskedCrossEntropy(), BalancedCrossEntropy(), SphericalLoss()):
            assert not grad(loss, logits, there)[fallen[:, None].expand_as(logits)].any()


def test_spherical_and_cosine_are_the_angle_of_the_logits() -> None:
    logits, label, valid = ground()
    there = aim(label, valid)
    cosine = logits.gather(1, label[:, None])[:, 0] / logits.norm(dim=1)
    assert torch.allclose(CosineLoss()(logits, there), 1 - cosine)
    assert torch.allclose(SphericalLoss()(logits, there), -cosine * (logits.argmax(1) == label))
    # opposite logits, as any two-class model can have: no gradient in this loss
    z = torch.randn(1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = CosineLoss()(torch.cat([-z, z], 1), aim(torch.zeros(1, 4, 4, dtype=torch.long), valid[:1]))
    assert float(torch.autograd.grad(value.sum(), z)[0].abs().max()) < 1e-9


def test_balanced_gives_each_class_the_same_say() -> None:
    label = torch.tensor([[[0, 0, 0, 1]]])
    logits = torch.zeros(1, 2, 1, 4).scatter_(1, label[:, None], 1.0)
    value = BalancedCrossEntropy()(logits, aim(label, torch.ones_like(label, dtype=torch.bool)))
    assert value[0, 0, :3].sum() == pytest.approx(float(value[0, 0, 3]))
    half = BalancedCrossEntropy()(logits, aim(label, torch.tensor([[[True, False, False, True]]])))
    assert float(half[0, 0, 0]) == pytest.approx(float(half[0, 0, 3]))
    given = BalancedCrossEntropy((1.0, 5.0))(logits, aim(label, torch.ones_like(label, dtype=torch.bool)))
    assert float(given[0, 0, 3] / given[0, 0, 0]) == pytest.approx(5.0)


def test_the_smooth_count_is_a_count_in_the_end_and_does_not_know_the_scale_of_logits() -> None:
    logits, label, valid = ground()
    fallen = (logits.argmax(1) != label) & valid
    off = [
        (SigmoidCount(1.0, last)(logits, aim(label, valid, 1.0)).detach() - fallen.double())[valid].abs().max()
        for last in (2.0, 1e4)
    ]
    assert off[0] > 0.2 and off[1] < 0.01
    logits, label, valid = ground(2)
    here = grad(SigmoidCount(), logits, aim(label, valid, 0.3))
    far = grad(SigmoidCount(), (1000 * logits.detach()).requires_grad_(), aim(label, valid, 0.3))
    assert torch.allclose(far.sign(), here.sign()) and torch.allclose(far * 1000, here, rtol=0.2, atol=1e-6)


def test_the_smooth_count_gets_sharper_over_the_run() -> None:
    gap = torch.tensor([[[0.2, 3.0]]], dtype=torch.float64)
    label = torch.ones(1, 1, 2, dtype=torch.long)
    pulls = []
    for progress in (0.0, 1.0):
        logits = torch.stack([torch.zeros_like(gap), gap], 1).requires_grad_()
        near, far = grad(SigmoidCount(), logits, aim(label, torch.ones_like(label, dtype=torch.bool), progress))[
            0, 0, 0
        ]
        pulls.append(float(near / far))
    assert pulls[1] > 100 * pulls[0] > 100, "in the end only the pixel near the border pulls"
