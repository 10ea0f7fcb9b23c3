"""The map of the smallest budget that flips a pixel, against the closed form of a linear model."""

from dataclasses import replace

import pytest
import torch

from seawall.attacks.flip_share import smallest_flip_share
from seawall.errors import UsageError
from seawall.rng import Keys
from seawall.testing.fixtures import ground_batch, linear_model, uneven_model
from seawall.threat.model import ThreatModel

THREAT = ThreatModel("linf", 0.05)


def exact_share(model, batch):
    """Margin over the l1 norm of the difference of the weights, as a share of the budget."""
    logits = model(batch.image)
    weight = model.weight[1] - model.weight[0]
    return ((logits[:, 1] - logits[:, 0]).abs() / weight.abs().sum() / THREAT.radius).detach()


def test_a_linear_model_is_flipped_at_its_margin_over_the_norm_of_its_weights():
    model, batch = linear_model(), ground_batch()
    exact = exact_share(model, batch)
    found = smallest_flip_share(model, batch, THREAT, Keys(0, batch.chips))
    reached = batch.seen & (exact < 0.99)
    assert bool((found[reached] >= exact[reached] * (1 - 1e-4)).all()), "below the robust radius"
    fine = reached & (exact > 2.0**-5)
    assert bool((found[fine] <= exact[fine] * (1 + 1 / 8) + 1e-4).all()), "far above the robust radius"
    assert bool((found[reached & ~fine] <= 2.0**-5 * (1 + 1e-4)).all())
    assert bool(found[batch.seen & (exact > 1.01)].isinf().all()) and bool(found[~batch.seen].isinf().all())
    assert bool(reached.any()) and bool((batch.seen & (exact > 1.01)).any())


def test_an_unseen_pixel_has_no_value_though_its_neighbors_change_it():
    model, batch = uneven_model().eval(), ground_batch(size=24)
    found = smallest_flip_share(model, batch, THREAT.scaled(10), Keys(0, batch.chips), levels=2, parts=2)
    assert bool(found[~batch.seen].isinf().all()) and bool(found[batch.seen].isfinite().any())


def test_labels_mean_nothing_and_more_levels_only_lower_the_map():
    model, batch = linear_model(), ground_batch()
    keys = Keys(0, batch.chips)
    few = smallest_flip_share(model, batch, THREAT, keys, levels=2, parts=2)
    relabelled = replace(batch, label=torch.zeros_like(batch.label), valid=torch.zeros_like(batch.valid))
    assert torch.equal(few, smallest_flip_share(model, relabelled, THREAT, keys, levels=2, parts=2))
    # the budgets and multiples of the few are among those of the many
    assert bool((smallest_flip_share(model, batch, THREAT, keys, levels=2, parts=4) <= few).all())
    with pytest.raises(UsageError, match="levels and parts"):
        smallest_flip_share(model, batch, THREAT, keys, levels=0)
