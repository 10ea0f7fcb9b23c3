"""What every training loss must keep."""

from __future__ import annotations

import torch
from torch import Tensor

from seawall.registry import Entry
from seawall.testing.assertions import made, same_bits
from seawall.testing.fixtures import ground_batch, linear_model, two_source_batch, two_source_model
from seawall.types import Batch, Loss


def check_finite_scalar_with_gradient(entry: Entry) -> None:
    """A finite scalar with a finite gradient that reaches valid pixels alone."""
    batch, logits = _loss_inputs()
    value = _loss(entry)(logits, batch.label, batch.valid)
    assert value.ndim == 0 and bool(value.isfinite()), f"expected a finite scalar, got {value}"
    (grad,) = torch.autograd.grad(value, logits)
    assert bool(grad.isfinite().all()) and bool((grad != 0).any()), "the gradient is not finite or zero everywhere"
    invalid = ~batch.valid[:, None].expand_as(grad)
    assert not bool((grad[invalid] != 0).any()), "an invalid pixel got a gradient"


def check_invalid_pixels_mean_nothing(entry: Entry) -> None:
    """Whatever labels and logits of invalid pixels say, the loss is the same."""
    batch, logits = _loss_inputs()
    usual = _loss(entry)(logits, batch.label, batch.valid)
    for value in (0, 1, 255, -1):
        label = torch.where(batch.valid, batch.label, value)
        wild = torch.where(batch.valid[:, None], logits, 1e4 * float(value))
        assert same_bits(usual, _loss(entry)(logits, label, batch.valid)), "labels of invalid pixels changed the loss"
        got = _loss(entry)(wild, label, batch.valid)
        assert torch.allclose(usual, got, atol=1e-6), "logits of invalid pixels changed the loss"


def check_labels_count_where_any_source_is_seen(entry: Entry) -> None:
    """Of chips of two sources, pixels that one of them sees have a gradient as others do."""
    batch = two_source_batch(images=2)
    logits = two_source_model()(batch.image).detach().requires_grad_()
    value = _loss(entry)(logits, batch.label, batch.valid)
    (grad,) = torch.autograd.grad(value, logits)
    one = batch.valid & ~batch.image_seen.all(1)
    assert bool(grad.isfinite().all()) and bool(one.any()), "the gradient is not finite"
    assert not bool((grad[~batch.valid[:, None].expand_as(grad)] != 0).any()), "an invalid pixel got a gradient"


def check_nothing_valid_is_zero(entry: Entry) -> None:
    """Without valid pixels the loss is 0 and its gradient is finite."""
    batch, logits = _loss_inputs()
    value = _loss(entry)(logits, batch.label, torch.zeros_like(batch.valid))
    assert float(value.detach()) == 0.0, f"expected 0 without valid pixels, got {value}"
    if value.requires_grad:
        assert bool(torch.autograd.grad(value, logits)[0].isfinite().all()), "the gradient is not finite"


def check_right_costs_less_than_wrong(entry: Entry) -> None:
    """A right and sure prediction costs less than a wrong and sure one; extreme logits stay finite."""
    batch, _ = _loss_inputs()
    label = torch.where(batch.valid, batch.label, 0)
    sure = torch.nn.functional.one_hot(label, 2).movedim(-1, 1).float() * 200 - 100
    right, wrong = (_loss(entry)(logits, batch.label, batch.valid) for logits in (sure, -sure))
    assert bool(right.isfinite()) and bool(wrong.isfinite()), f"not finite at extreme logits: {right}, {wrong}"
    assert right < wrong, f"right costs {right}, wrong costs {wrong}"


def _loss_inputs() -> tuple[Batch, Tensor]:
    batch = ground_batch(images=2)
    return batch, linear_model()(batch.image).detach().requires_grad_()


def _loss(entry: Entry) -> Loss:
    return made(entry, Loss)


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]
