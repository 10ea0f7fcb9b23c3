"""What every goal of an attack must keep."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from seawall.attacks.pgd import PGD
from seawall.attacks.target import AttackGoal, make_target, parse_goal
from seawall.registry import Entry
from seawall.rng import Keys
from seawall.testing.assertions import made, same_batch
from seawall.testing.fixtures import ground_batch, linear_model
from seawall.threat.model import ThreatModel
from seawall.types import Batch


def check_a_class_for_every_valid_pixel(entry: Entry) -> None:
    """Every valid pixel has one of the model's classes, and the batch is not written to."""
    batch = ground_batch()
    before = batch.copy()
    found = _class_map(entry, batch)
    assert found.shape == batch.label.shape and found.dtype == torch.int64, f"expected int64 {tuple(batch.label.shape)}"
    assert bool(((found >= 0) & (found < 2))[batch.valid].all()), "a valid pixel has no class of the model"
    assert same_batch(batch, before), "the goal wrote to its batch"


def check_its_text_is_read_back(entry: Entry) -> None:
    """The text of a goal, as recipes have it, gives the same goal."""
    goal = made(entry, AttackGoal)
    assert parse_goal(str(goal)) == goal, f"{str(goal)!r} is read as {parse_goal(str(goal))!r}"


def check_images_do_not_see_each_other(entry: Entry) -> None:
    """A batch equals its images one by one."""
    batch = ground_batch()
    whole = _class_map(entry, batch)
    for i in range(len(batch)):
        alone = _class_map(entry, batch.select([i]))
        assert torch.equal(whole[i : i + 1], alone), "the goal for an image depends on its batch"


def check_labels_of_invalid_pixels_mean_nothing(entry: Entry) -> None:
    """Whatever the labels of invalid pixels are, valid pixels have the same class."""
    batch = ground_batch()
    usual = _class_map(entry, batch)[batch.valid]
    for label in (0, 1, 255, -1):
        other = replace(batch, label=torch.where(batch.valid, batch.label, label))
        assert torch.equal(usual, _class_map(entry, other)[batch.valid]), f"label {label} of invalid pixels counts"


def check_an_attack_reaches_more_of_it(entry: Entry) -> None:
    """PGD with this goal has more pixels where the adversary wants them than before."""
    model, batch, goal = linear_model(), ground_batch(size=16), made(entry, AttackGoal)
    adv = PGD(goal=goal, steps=10)(model, batch, ThreatModel("linf", 0.03), Keys(0, batch.chips))
    target = make_target(model, batch, goal)
    before, after = target.successes(model(batch.image)).sum(), target.successes(model(adv)).sum()
    assert after > before, f"{int(before)} pixels before, {int(after)} after"


def _class_map(entry: Entry, batch: Batch) -> Tensor:
    model, goal = linear_model(), made(entry, AttackGoal)
    return goal.class_map(model.spec, batch, model(batch.image).detach() if goal.needs_logits else None)


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]
