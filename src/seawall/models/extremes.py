"""The exact worst case of a water index within a threat: an index that rises or falls along each band is extreme at a corner."""

from __future__ import annotations

import torch
from torch import Tensor

from seawall.models.threshold import RULES, ThresholdNet
from seawall.threat.ball import Ball

DEFINED = 2e-6
"""Sum of the bands of a ratio that is safely above the one from which on `ThresholdNet` calls it defined."""


def extreme_images(model: ThresholdNet, ball: Ball) -> tuple[Tensor, ...]:
    """Return images of the set, each (B, C, H, W), among which every pixel meets its worst case.

    An adversary within a box moves each pixel alone. Water is `index > t`; for a normalized difference (a - b) / (a + b)
    with a + b > 0 and |t| < 1 that is (1 - t) a - (1 + t) b > 0, so it is linear as the other indices are, and a linear
    function is extreme where each band is at the end of its interval that the sign of its coefficient says. Beside these
    two corners stand the clean image, the darkest one (a ratio without a positive sum is land), and the corner of the most
    water with the sum kept positive.

    Args:
        model: A threshold model.
        ball: The threat set around the clean images.

    Returns:
        The images; empty where the set has no such corners: in l2 the pixels share one budget, and beyond |t| = 1 a ratio
        needs a negative band.
    """
    rule = RULES[model.index]
    if ball.norm != "linf" or (rule.ratio and not abs(float(model.threshold)) < 1):
        return ()
    if ball.spectrum is not None:
        return ball.x, ball.x + ball.low * ball.spectrum, ball.x + ball.high * ball.spectrum
    most, least = ball.x.clone(), ball.x.clone()
    for place, slope in zip(model.places, _slopes(model), strict=True):
        ends = (ball.high, ball.low) if slope > 0 else (ball.low, ball.high)
        most[:, place], least[:, place] = ends[0][:, place], ends[1][:, place]
    found = [ball.x, most, least, ball.low]
    if rule.ratio:
        rises, falls = model.places
        found.append(most.clone())
        enough = torch.maximum(ball.low[:, falls], DEFINED - most[:, rises])
        found[-1][:, falls] = torch.minimum(enough, ball.high[:, falls])
    return tuple(found)


def _slopes(model: ThresholdNet) -> list[float]:
    """Return the sign of the change of the index along each of its bands."""
    with torch.enable_grad():
        bands = [torch.ones((), requires_grad=True) for _ in model.places]
        return [float(slope.sign()) for slope in torch.autograd.grad(RULES[model.index].formula(*bands), bands)]
