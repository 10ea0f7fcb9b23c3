"""What every poison of training chips must keep."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace

import torch

from seawall.poisoning.gradient_matching import GradientMatching
from seawall.poisoning.meta_poison import MetaPoison
from seawall.poisoning.target import PoisonTarget
from seawall.registry import Entry, build
from seawall.rng import Keys
from seawall.testing.assertions import quiet_random, same_batch, same_bits
from seawall.testing.fixtures import ground_batch, linear_model
from seawall.types import Batch, Poison


def check_changes_what_it_may(entry: Entry) -> None:
    """Values move by at most `eps`, unseen and invalid pixels stay, labels stay classes; the input is not written to."""
    batch = _chips()
    before = batch.copy()
    after = _poisoned(entry, batch)
    assert same_batch(batch, before), "the poison wrote to its batch"
    assert after.chips == batch.chips and same_bits(after.seen, batch.seen) and same_bits(after.valid, batch.valid)
    moved = (after.image - batch.image).abs()
    assert float(moved.max()) <= _eps(entry) * (1 + 1e-5), (
        f"a value moved by {float(moved.max())}, eps is {_eps(entry)}"
    )
    assert float(moved[~batch.image_seen.expand_as(moved)].max()) == 0.0, "an unseen pixel was touched"
    labels = after.label[after.valid]
    assert bool(((labels >= 0) & (labels < 2)).all()), "a valid label is no class"
    assert torch.equal(after.label[~batch.valid], batch.label[~batch.valid]), "an invalid label was changed"


def check_does_something(entry: Entry) -> None:
    """Images or labels of every chip change."""
    batch = _chips()
    after = _poisoned(entry, batch)
    for i in range(len(batch)):
        same = same_bits(after.image[i], batch.image[i]) and same_bits(after.label[i], batch.label[i])
        assert not same, f"chip {i} is as it was"


def check_clean_labels_stay(entry: Entry) -> None:
    """A poison that declares `clean-label` changes no label; any other changes one."""
    batch = _chips()
    same = same_bits(_poisoned(entry, batch).label, batch.label)
    assert same == ("clean-label" in entry.traits), "clean-label: declared and not true, or true and not declared"


def check_only_its_keys(entry: Entry) -> None:
    """Randomness comes from the keys alone."""
    batch = _chips()
    with quiet_random():
        first = _poisoned(entry, batch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(999)
        assert same_batch(first, _poisoned(entry, batch)), "the same keys gave another result"


def check_no_budget_is_identity(entry: Entry) -> None:
    """With an eps or a budget of 0 nothing changes."""
    batch, method = _chips(), build(entry.kind, entry.name, entry.smoke)
    assert is_dataclass(method) and not isinstance(method, type)
    names = {f.name for f in fields(method)}
    zero = replace(method, **{name: 0.0 for name in ("eps", "budget") if name in names})
    assert same_batch(batch, _applied(zero, batch)), "a budget of 0 changed something"


def _chips() -> Batch:
    return ground_batch(images=3, size=20)


def _eps(entry: Entry) -> float:
    return float(getattr(build(entry.kind, entry.name, entry.smoke), "eps", 0.0))


def _poisoned(entry: Entry, batch: Batch) -> Batch:
    return _applied(build(entry.kind, entry.name, entry.smoke), batch)


def _applied(method: object, batch: Batch) -> Batch:
    keys = Keys(0, batch.chips)
    scene = batch.select([0])
    target = PoisonTarget(scene, scene.seen, 0)
    if isinstance(method, GradientMatching):  # crafted for a target, with a model
        return method.craft(linear_model(), target, batch, keys).batch
    if isinstance(method, MetaPoison):  # crafted for a target, with models of its own
        other = replace(ground_batch(images=3, size=20, seed=1), chips=("other0", "other1", "other2"))
        return method.craft(lambda seed: linear_model(), target, batch, other, keys).batch
    assert isinstance(method, Poison), f"expected a poison, got {type(method).__name__}"
    return method(batch, keys)


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]
