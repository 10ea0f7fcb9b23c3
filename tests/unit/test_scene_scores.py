"""Scores of scenes against masks that are counted one by one."""

import numpy as np
import pytest
import torch
from torch import nn

from seawall.types import Batch, ModelSpec
from seawall.uncertainty.scene_scores import score_scenes


class Given(nn.Module):
    """The image is the logits."""

    spec = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image


def chips(count: int = 5, size: int = 24) -> Batch:
    """Return chips of which some pixels are unseen, and some seen ones have no label."""
    rng = torch.Generator().manual_seed(0)
    share = torch.rand(count, size, size, generator=rng).clamp(0.01, 0.99)
    label = (torch.rand(count, size, size, generator=rng) < 0.3 + 0.4 * share).long()
    seen = torch.rand(count, size, size, generator=rng) < 0.9
    valid = seen & (torch.rand(count, size, size, generator=rng) < 0.8)
    image = torch.stack([(1 - share).log(), share.log()], 1)
    return Batch(image, label, seen, valid, tuple(f"chip{i}" for i in range(count)))


def test_curves_and_areas_are_those_of_masks():
    batch = chips()
    found = score_scenes(Given(), [batch], {"chip0": "s", "chip1": "s"}, "water", 100.0)
    assert [score.scene for score in found] == ["chip2", "chip3", "chip4", "s"] and found[-1].chips == 2
    p = torch.softmax(batch.image.double(), 1)[:2, 1]
    water, other = (batch.label[:2] == 1) & batch.valid[:2], (batch.label[:2] == 0) & batch.valid[:2]
    for at in (0, 250, 500, 999, 1000):
        assert found[-1].missed[at] == pytest.approx(float((p[water] < at / 1000).double().mean()))
        assert found[-1].alarmed[at] == pytest.approx(float((p[other] >= at / 1000).double().mean()))
    mapped = p > 0.5
    for name, mask in (
        ("hits", mapped & water),
        ("misses", ~mapped & water),
        ("alarms", mapped & other),
        ("rejections", ~mapped & other),
    ):
        assert getattr(found[-1], f"{name}_km2") == pytest.approx(int(mask.sum()) * 0.01)
    assert found[-1].expected_km2 == pytest.approx(float(p[water | other].sum()) * 0.01)
    assert found[-1].doubt_km2 == pytest.approx(float((p * (1 - p))[water | other].sum()) * 0.01)


def test_distances_are_to_the_nearest_pixel_of_the_map():
    batch = chips(1)
    (found,) = score_scenes(Given(), [batch], {}, "water", 10.0)
    seen, water = batch.seen[0].numpy(), (batch.label[0] == 1).numpy()
    mapped = (batch.image[0, 1] > batch.image[0, 0]).numpy() & seen
    for pixels, targets, curve in (
        (water, mapped, found.missed_beyond),
        (~water, ~mapped & seen, found.alarmed_beyond),
    ):
        own = np.argwhere(pixels & batch.valid[0].numpy())
        nearest = np.sqrt(((own[:, None] - np.argwhere(targets)[None]) ** 2).sum(-1).min(1))
        for d in (0, 1, 2, 5):
            assert curve[d] == pytest.approx(np.mean(nearest > d))


def test_without_a_pixel_to_share_there_is_no_curve():
    dry = chips(2)
    dry = Batch(dry.image, torch.zeros_like(dry.label), dry.seen, dry.valid, dry.chips)
    found = score_scenes(Given(), [dry], {}, "water", 10.0)
    assert all(score.missed is None and score.missed_beyond is None and score.alarmed is not None for score in found)
    none = Batch(dry.image, dry.label, dry.seen, torch.zeros_like(dry.valid), dry.chips)
    assert score_scenes(Given(), [none], {}, "water", 10.0) == ()
    far = Batch(
        torch.stack([torch.ones(2, 24, 24), torch.zeros(2, 24, 24)], 1), 1 - dry.label, dry.seen, dry.valid, dry.chips
    )
    assert all((score.missed_beyond == 1).all() for score in score_scenes(Given(), [far], {}, "water", 10.0))


def test_a_probability_is_compared_as_in_a_map_in_single_precision():
    """One less 1e-8 is 1 in a map: what is surely water there is an alarm at the threshold 1, too."""
    logits = torch.tensor([9.0, 7.0]).view(1, 1, 1, 2)
    batch = Batch.of(torch.cat([-logits, logits], 1), torch.zeros(1, 1, 2, dtype=torch.long))
    (score,) = score_scenes(Given(), [batch], {}, "water", 10.0)
    assert (torch.softmax(batch.image, 1)[0, 1] == 1).tolist() == [[True, False]]
    assert score.alarmed[-1] == 0.5 and score.alarmed[-2] == 1.0
