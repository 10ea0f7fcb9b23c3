"""What every label noise must keep."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from functools import partial

import torch

from seawall.registry import Entry
from seawall.rng import Keys
from seawall.testing.assertions import made, quiet_random, same_labels, with_other_labels
from seawall.testing.fixtures import ground_batch
from seawall.types import Batch, LabelNoise

NOISE_CLASSES = 2


def check_only_labels_change(entry: Entry) -> None:
    """Image and seen stay; the input is not written to; valid stays inside seen; labels stay classes."""
    batch = _lake()
    after = with_other_labels(partial(_run_noise, entry), batch)
    assert not bool((after.valid & ~after.seen).any()), "a pixel is valid but unseen"
    labels = after.label[after.valid]
    assert after.label.dtype == torch.int64, f"expected int64 labels, got {after.label.dtype}"
    assert bool(((labels >= 0) & (labels < NOISE_CLASSES)).all()), "a valid label is no class"


def check_only_its_keys(entry: Entry) -> None:
    """Randomness comes from the keys alone."""
    batch = _lake()
    with quiet_random():
        first = _run_noise(entry, batch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(999)
        assert same_labels(first, _run_noise(entry, batch)), "the same keys gave another result"


def check_images_do_not_see_each_other(entry: Entry) -> None:
    """A batch equals its images one by one."""
    batch = _lake()
    whole = _run_noise(entry, batch)
    for i in range(len(batch)):
        assert same_labels(whole.select([i]), _run_noise(entry, batch.select([i]))), (
            "an image's noise depends on its batch"
        )


def check_labels_of_invalid_pixels_mean_nothing(entry: Entry) -> None:
    """Whatever an invalid pixel's label says, valid pixels get the same."""
    batch = _lake()
    first = _run_noise(entry, batch)
    for value in (0, 1, 255, -1):
        other = _run_noise(entry, replace(batch, label=torch.where(batch.valid, batch.label, value)))
        assert same_labels(first, other), f"label {value} of invalid pixels changed the result"


def check_zero_budget_is_identity(entry: Entry) -> None:
    """With a budget of 0, valid labels stay."""
    noise = made(entry, LabelNoise)
    if not is_dataclass(noise) or isinstance(noise, type) or "budget" not in [f.name for f in fields(noise)]:
        return
    batch = _lake()
    still = replace(noise, budget=0.0)
    assert same_labels(batch, still(batch, Keys(0, batch.chips))), "budget 0 changed a label"


def check_nothing_valid(entry: Entry) -> None:
    """A chip without labels comes back without labels."""
    batch = _lake()
    empty = replace(batch, valid=torch.zeros_like(batch.valid))
    assert not bool(_run_noise(entry, empty).valid.any()), "it made labels where there were none"


def _lake() -> Batch:
    batch = ground_batch(images=3, size=24)
    rows, cols = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij")
    radius = torch.tensor([4.0, 6.0, 8.0])[:, None, None]
    lake = ((rows - 11.0) ** 2 + (cols - 12.0) ** 2 < radius**2).long()
    return replace(batch, label=torch.where(batch.valid, lake, batch.label))


def _run_noise(entry: Entry, batch: Batch) -> Batch:
    return made(entry, LabelNoise)(batch, Keys(0, batch.chips))


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]
