"""What every suite of attacks must keep."""

from __future__ import annotations

import torch

from seawall.attacks.cost import count_passes
from seawall.attacks.suites import Suite
from seawall.registry import Entry
from seawall.rng import Keys
from seawall.testing.assertions import made
from seawall.testing.fixtures import accuracy, ground_batch, linear_model, worst_accuracy
from seawall.threat.model import ThreatModel

SUITE_THREAT = ThreatModel("linf", 0.03, low=0.0)


def check_members_are_named_apart(entry: Entry) -> None:
    """There are members, and each has a name of its own that tells the suite."""
    names = [member.name for member in made(entry, Suite).members()]
    assert names and len(set(names)) == len(names), f"expected one name per member, got {names}"
    assert all(name.split()[0] == entry.name for name in names), f"expected names that begin with {entry.name!r}"


def check_the_same_suite_twice(entry: Entry) -> None:
    """Equal settings give equal members, so that rows of an earlier run are recognized."""
    assert made(entry, Suite).members() == made(entry, Suite).members(), "two suites of equal settings differ"


def check_members_stay_in_the_threat_set(entry: Entry) -> None:
    """Every member keeps the budget and leaves unseen pixels alone."""
    model, batch = linear_model(), ground_batch(images=2)
    unseen = ~batch.image_seen.expand_as(batch.image)
    for member in made(entry, Suite).members():
        adv = member.attack(model, batch, SUITE_THREAT, Keys(0, batch.chips))
        far = SUITE_THREAT.distance(adv, batch.image)
        assert bool((far <= SUITE_THREAT.radius * (1 + 1e-4) + 1e-6).all()), (
            f"{member.name}: eps is {SUITE_THREAT.radius}, got {far}"
        )
        assert torch.equal(adv[unseen], batch.image[unseen]), f"{member.name}: an unseen pixel was touched"


def check_cost_is_what_is_stated(entry: Entry) -> None:
    """No member takes more passes per chip than it states, but for judging passes at begin and end."""
    model, batch = linear_model(), ground_batch(images=2)
    for member in made(entry, Suite).members():
        with count_passes(model) as passes:
            member.attack(model, batch, SUITE_THREAT, Keys(0, batch.chips))
        assert passes.backward <= (member.passes + 3) * len(batch), (
            f"{member.name}: expected at most {member.passes} passes per chip, got {passes.backward / len(batch)}"
        )


def check_the_worst_case_is_that_of_a_linear_model(entry: Entry) -> None:
    """Together the members find most of what can be taken from a linear model, in every image."""
    model, batch = linear_model(), ground_batch(images=3)
    least, _ = worst_accuracy(model, batch, SUITE_THREAT)
    clean = accuracy(model, batch)
    worst = clean
    for member in made(entry, Suite).members():
        worst = torch.minimum(
            worst, accuracy(model, batch, member.attack(model, batch, SUITE_THREAT, Keys(0, batch.chips)))
        )
    assert bool((worst <= least + 0.1 * (clean - least) + 1e-6).all()), f"expected {least}, got {worst}"


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]
