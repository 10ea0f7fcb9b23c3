"""APGD with red-eps against a second implementation, one image at a time with plain numbers."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from seawall.attacks.apgd import APGD
from seawall.attacks.losses import MaskedCrossEntropy
from seawall.rng import Keys
from seawall.testing.fixtures import ground_batch, uneven_model
from seawall.threat.model import ThreatModel
from seawall.types import Batch

EPS = 0.004


def reference(model: torch.nn.Module, batch: Batch, start: Tensor, steps: int, masked: bool) -> Tensor:
    """The published rules for one image: stages of 2, 1.5 and 1 eps, 30, 30 and 40 % of the steps."""
    valid, label = batch.valid[0], torch.where(batch.valid, batch.label, 0)
    best = start
    first, second = int(0.3 * steps), int(0.3 * steps)
    for radius, length in ((2.0, first), (1.5, second), (1.0, steps - first - second)):
        r = radius * EPS
        room = torch.where(batch.seen[:, None], r, 0.0)
        low, high = batch.image - room, batch.image + room
        best = climb(model, valid, label, torch.clamp(best, low, high), low, high, r, length, masked)
    return best


def climb(model, valid, label, x, low, high, r, steps, masked):  # type: ignore[no-untyped-def]
    def look(image: Tensor) -> tuple[Tensor, float, int]:
        image = image.detach().requires_grad_()
        logits = model(image)
        pixel = functional.cross_entropy(logits, label, reduction="none")[0]
        right = (logits.argmax(1) == label)[0] & valid
        climbed = pixel * right if masked else pixel * valid
        grad = torch.autograd.grad(climbed.sum(), image)[0]
        return grad, float(pixel[valid].mean().detach()), int(right.sum())

    grad, loss, least = look(x)
    answer, top, top_grad, top_loss, previous = x, x, grad, loss, x
    step, top_at_check, halved, history = 2 * r, loss, True, []
    window, smallest, shrink = (max(int(s * steps), 1) for s in (0.22, 0.06, 0.03))
    since = 0
    for i in range(steps):
        momentum = 0.25 if i else 0.0
        shift, previous = x - previous, x
        z = torch.clamp(x + step * grad.sign(), low, high)
        x = torch.clamp(x + (1 - momentum) * (z - x) + momentum * shift, low, high)
        grad, loss, right = look(x)
        if right <= least:
            answer, least = x, right
        history.append(loss)
        if loss > top_loss:
            top, top_grad, top_loss = x, grad, loss
        since += 1
        if since == window:
            rises = sum(j == 0 or history[j] > history[j - 1] for j in range(i - window + 1, i + 1))
            stuck = not halved and top_at_check >= top_loss
            halved = rises <= 0.75 * window or stuck
            top_at_check = top_loss
            if halved:
                step, x, grad = step / 2, top, top_grad
            since, window = 0, max(window - shrink, smallest)
    return answer


@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_reference(masked: bool) -> None:
    # in double precision: rounding decides which of two equal losses is larger
    model, batch, steps = uneven_model().eval().double(), ground_batch(size=16), 60
    batch = replace(batch, image=batch.image.double())
    threat, keys = ThreatModel("linf", EPS), Keys(0, batch.chips)
    attack = APGD(loss=MaskedCrossEntropy(), steps=steps) if masked else APGD(steps=steps)
    got = attack(model, batch, threat, keys)
    wide = threat.scaled(2.0).start(batch.image, batch.seen, keys.fold("start"))
    for i in range(len(batch)):
        wanted = reference(model, batch.select([i]), wide[i : i + 1], steps, masked)
        assert float((got[i : i + 1] - wanted).abs().max()) < 1e-5


def test_the_plan_is_30_30_40_percent() -> None:
    assert APGD().plan == (90, 90, 120)
    assert APGD(steps=300, radii=(1.0,), shares=(1.0,)).plan == (300,)
    assert sum(APGD(steps=77).plan) == 77 and not math.isnan(APGD().steps)
