"""The smallest budget at which each pixel changes its class: an upper bound of its robust radius."""

from __future__ import annotations

import torch
from torch import Tensor

from seawall.attacks.pgd import PGD
from seawall.attacks.target import predicted_classes, with_predicted_labels
from seawall.errors import UsageError
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Attack, Batch, SegmentationModel

TO_THE_END = PGD(keep="last")


def smallest_flip_share(
    model: SegmentationModel,
    batch: Batch,
    threat: ThreatModel,
    keys: Keys,
    attack: Attack = TO_THE_END,
    *,
    levels: int = 6,
    parts: int = 8,
) -> Tensor:
    """Return the smallest share of the budget at which the class of each pixel was ever seen to change, (B, H, W) float32.

    The attack is run with the whole budget, half of it, a quarter and so on, against the model's own clean map; between each of its images
    and the next budget below, smaller multiples of the same perturbation are tried, which lie in the threat set too. A pixel that no image changes, or that
    is unseen, is infinite. A better attack can only lower the values, so none is a guarantee.

    Args:
        model: In eval mode.
        batch: Images; labels are not looked at.
        threat: The largest budget.
        attack: Any attack with a budget, by default PGD to its last step; one that stops as soon as a whole chip is changed gives a looser
            bound.
        keys: One stream per chip.
        levels: Budgets.
        parts: Images per budget; each value is exact to 1 part in so many, for this attack, down to the smallest budget.

    Raises:
        UsageError: No level, or no part.
    """
    if levels < 1 or parts < 1:
        raise UsageError(f"flip map: expected levels and parts >= 1, got {levels} and {parts}; 6 and 8 are usual")
    known = with_predicted_labels(model, batch)
    smallest = torch.full(batch.label.shape, torch.inf, device=batch.image.device)
    for level in range(levels):
        budget, lowest = 2.0**-level, 0.0 if level == levels - 1 else 0.5
        change = attack(model, known, threat.scaled(budget), keys) - batch.image
        for part in range(parts):
            share = 1 - (1 - lowest) * part / parts
            with torch.no_grad():
                flipped = (predicted_classes(model(batch.image + share * change)) != known.label) & batch.seen
            smallest = torch.where(flipped, smallest.clamp_max(budget * share), smallest)
    return smallest
