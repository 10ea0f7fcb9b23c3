"""What every loss that attacks ascend must keep."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from seawall.attacks.losses import AttackLoss, logit_gap
from seawall.attacks.target import AttackTarget
from seawall.registry import Entry
from seawall.testing.assertions import made, same_bits
from seawall.testing.fixtures import ground_batch, linear_model


def check_a_finite_loss_per_pixel(entry: Entry) -> None:
    """A finite number per pixel, with a finite gradient, also where the model is extremely sure."""
    for scale in (1.0, 1e3):
        logits, target = _logits_and_target(scale)
        loss = made(entry, AttackLoss)(logits, target)
        assert loss.shape == target.label.shape, f"expected {tuple(target.label.shape)}, got {tuple(loss.shape)}"
        assert bool(loss.isfinite().all()), f"the loss at logits times {scale:g} is not finite"
        (grad,) = torch.autograd.grad(loss[target.valid].sum(), logits)
        assert bool(grad.isfinite().all()), f"the gradient at logits times {scale:g} is not finite"


def check_invalid_pixels_mean_nothing(entry: Entry) -> None:
    """Whatever is in invalid pixels, the loss of valid ones is the same."""
    logits, target = _logits_and_target()
    usual = made(entry, AttackLoss)(logits, target)[target.valid]
    for klass in (0, 1):
        other = replace(target, label=torch.where(target.valid, target.label, klass))
        wild = torch.where(target.valid[:, None], logits, 7.0 * (klass + 1))
        got = made(entry, AttackLoss)(wild, other)[target.valid]
        assert torch.allclose(usual, got, atol=1e-6), "invalid pixels changed the loss of valid ones"


def check_images_do_not_see_each_other(entry: Entry) -> None:
    """A batch equals its images one by one."""
    logits, target = _logits_and_target()
    whole = made(entry, AttackLoss)(logits, target)
    for i in range(len(logits)):
        alone = made(entry, AttackLoss)(logits[i : i + 1], target.select(torch.tensor([i])))
        assert torch.allclose(whole[i : i + 1], alone, atol=1e-6), "the loss of an image depends on its batch"


def check_ascent_serves_the_adversary(entry: Entry) -> None:
    """A small step along the gradient moves the mean gap of the logits towards what the adversary wants."""
    for targeted in (False, True):
        logits, target = _logits_and_target(targeted=targeted)
        loss = made(entry, AttackLoss)(logits, target)
        (grad,) = torch.autograd.grad(loss[target.valid].sum(), logits)
        assert bool((grad != 0).any()), "the gradient is zero everywhere"
        step = 0.01 * grad / grad.abs().max()
        moved = (logit_gap(logits + step, target) - logit_gap(logits, target))[target.valid].mean()
        assert (moved < 0) == targeted, f"targeted={targeted}: the gap moved by {float(moved.detach())}"


def check_the_same_twice(entry: Entry) -> None:
    """The same input gives the same loss to the bit, and is not written to."""
    logits, target = _logits_and_target()
    before, label = logits.detach().clone(), target.label.clone()
    loss = made(entry, AttackLoss)
    assert same_bits(loss(logits, target), loss(logits, target)), "two calls differ"
    assert same_bits(logits.detach(), before) and same_bits(target.label, label), "the loss wrote to its input"


def _logits_and_target(scale: float = 1.0, targeted: bool = False) -> tuple[Tensor, AttackTarget]:
    batch = ground_batch(images=3)
    logits = (scale * linear_model()(batch.image)).detach().requires_grad_()
    label = torch.where(batch.valid, batch.label, 0)
    return logits, AttackTarget(1 - label if targeted else label, batch.valid, targeted, progress=0.5)


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]
