"""What every supervision must keep."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial

import torch

from seawall.registry import Entry
from seawall.rng import Keys
from seawall.testing.assertions import made, quiet_random, same_labels, with_other_labels
from seawall.testing.fixtures import ground_batch
from seawall.types import Batch, ChipSelection, LabelledChip, Supervision

SUPERVISED_CLASSES = 3
KNOWN_COUNTS = (1, 2, 3)
"""Counts of which each larger one must keep what is known by the smaller ones."""


def check_no_pixel_becomes_valid(entry: Entry) -> None:
    """Image and seen stay, the input is not written to, and what is known was valid."""
    batch = _few_chips()
    after = with_other_labels(partial(_apply_to, entry), batch)
    assert after.valid.dtype == torch.bool and after.label.dtype == torch.int64, "labels are int64, valid is bool"
    assert not bool((after.valid & ~batch.valid).any()), "a pixel without a label became valid"
    assert bool(after.valid.any()), "no pixel of any chip is known"


def check_known_labels_are_true(entry: Entry) -> None:
    """Known pixels keep their label, but for image-level labels, which must be those of some pixel of the chip."""
    batch = _few_chips()
    after = _apply_to(entry, batch)
    changed = after.valid & (after.label != batch.label)
    assert bool(changed.any()) == ("image-level" in entry.traits), (
        "only image-level labels may differ from those of pixels"
    )
    for i in range(len(batch)):
        there = set(batch.label[i][batch.valid[i]].tolist())
        assert set(after.label[i][after.valid[i]].tolist()) <= there, "a label is of a class that the chip lacks"


def check_depends_on_its_keys_alone(entry: Entry) -> None:
    """Randomness comes from the keys, and a batch equals its chips one by one."""
    batch = _few_chips()
    with quiet_random():
        whole = _apply_to(entry, batch)
    supervision = _chosen(entry, batch)
    for i in range(len(batch)):
        one = batch.select([i])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(999)
            assert same_labels(whole.select([i]), supervision(one, Keys(0, one.chips))), "a chip depends on its batch"


def check_invalid_labels_mean_nothing(entry: Entry) -> None:
    """Whatever the label of an invalid pixel says, the same is known."""
    batch = _few_chips()
    first = _apply_to(entry, batch)
    for value in (0, 1, 255, -1):
        other = replace(batch, label=torch.where(batch.valid, batch.label, value))
        assert same_labels(first, _apply_to(entry, other)), f"label {value} of invalid pixels changed what is known"


def check_without_labels(entry: Entry) -> None:
    """A chip without labels comes back without labels."""
    batch = _few_chips()
    empty = replace(batch, valid=torch.zeros_like(batch.valid))
    assert not bool(_apply_to(entry, empty).valid.any()), "it made labels where there were none"


def check_more_keeps_less(entry: Entry) -> None:
    """With a setting `count`, a larger one keeps what is known by a smaller one, and more is known."""
    method = made(entry, Supervision)
    if not is_dataclass(method) or isinstance(method, type) or "count" not in [f.name for f in fields(method)]:
        return
    batch = _few_chips()
    known = [_apply(replace(method, count=count), batch).valid for count in KNOWN_COUNTS]
    for less, more in itertools.pairwise(known):
        assert not bool((less & ~more).any()), "a larger count lost a pixel of a smaller one"
        assert int(more.sum()) > int(less.sum()), "a larger count made no more pixels known"


def _few_chips() -> Batch:
    return ground_batch(images=4, classes=SUPERVISED_CLASSES, size=16)


def _apply_to(entry: Entry, batch: Batch) -> Batch:
    return _apply(made(entry, Supervision), batch)


def _chosen(entry: Entry, batch: Batch) -> Supervision:
    return _choose(made(entry, Supervision), batch)


def _apply(method: Supervision, batch: Batch) -> Batch:
    return _choose(method, batch)(batch, Keys(0, batch.chips))


def _choose(method: Supervision, batch: Batch) -> Supervision:
    if not isinstance(method, ChipSelection):
        return method
    return method.chosen_from(_summaries(batch), Keys(0, batch.chips))


def _summaries(batch: Batch) -> Sequence[LabelledChip]:
    counts = [
        tuple(int(((label == k) & valid).sum()) for k in range(SUPERVISED_CLASSES))
        for label, valid in zip(batch.label, batch.valid, strict=True)
    ]
    return [
        LabelledChip(id_, f"place{i % 2}", count)
        for i, (id_, count) in enumerate(zip(batch.chips, counts, strict=True))
    ]


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]
