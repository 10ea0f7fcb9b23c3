"""What every natural corruption must keep."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from seawall.registry import Entry
from seawall.rng import Keys
from seawall.testing.assertions import made, quiet_random, same_bits
from seawall.testing.fixtures import ground_batch
from seawall.types import Corruption

SIZE = 24


def check_zero_severity_is_identity(entry: Entry) -> None:
    """Severity 0 gives the image back, to the bit."""
    image, _, keys = _given()
    assert same_bits(_run(entry, 0.0), image), "severity 0 changed the image"
    assert keys.chips, "the ground has chips"


def check_changes_something(entry: Entry) -> None:
    """Severity 1 is no identity."""
    image, _, _ = _given()
    assert not same_bits(_run(entry, 1.0), image), "severity 1 changed nothing"


def check_shape_dtype_finite_untouched(entry: Entry) -> None:
    """The result is an image like the one that came, which is not written to."""
    image, seen, keys = _given()
    before, holes = image.clone(), seen.clone()
    after = cast(Corruption, made(entry))(image, seen, 0.6, keys)
    assert after.shape == image.shape and after.dtype == image.dtype, "shape or dtype changed"
    assert bool(after.isfinite().all()), "the result is not finite"
    assert same_bits(image, before) and same_bits(seen, holes), "the corruption wrote to its input"


def check_unseen_pixels_never_touched(entry: Entry) -> None:
    """Pixels without data stay as they are, and what they hold means nothing."""
    image, seen, keys = _given()
    after = _run(entry, 0.8)
    there = ~seen[:, None].expand_as(image)
    assert torch.equal(after[there], image[there]), "an unseen pixel was touched"
    other = torch.where(seen[:, None], image, 0.9)
    again = cast(Corruption, made(entry))(other, seen, 0.8, keys)
    assert torch.allclose(again[~there], after[~there], atol=1e-6), "what unseen pixels hold leaked into seen ones"


def check_only_its_keys(entry: Entry) -> None:
    """Randomness comes from the keys alone."""
    with quiet_random():
        first = _run(entry, 0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(999)
        assert same_bits(first, _run(entry, 0.5)), "the same keys gave another result"


def check_images_do_not_see_each_other(entry: Entry) -> None:
    """A batch equals its images one by one."""
    image, seen, keys = _given()
    whole = _run(entry, 0.5)
    for i in range(len(image)):
        alone = cast(Corruption, made(entry))(image[i : i + 1], seen[i : i + 1], 0.5, keys.select([i]))
        assert torch.allclose(whole[i : i + 1], alone, rtol=0, atol=1e-6), "an image's corruption depends on its batch"


def _given() -> tuple[Tensor, Tensor, Keys]:
    batch = ground_batch(images=2, bands=6, size=SIZE)
    return batch.image, batch.seen, Keys(0, batch.chips)


def _run(entry: Entry, severity: float) -> Tensor:
    image, seen, keys = _given()
    return cast(Corruption, made(entry))(image, seen, severity, keys)


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]
