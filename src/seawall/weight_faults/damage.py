"""What flipped bits do to a network: the IoU on held-out chips after every round, and the flips until it is halved."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from seawall.class_names import main_class
from seawall.errors import DataError, UsageError
from seawall.metrics.counts import confusion
from seawall.models.checksums import WeightChecksums
from seawall.modules import eval_mode, to_device_of
from seawall.types import Batch
from seawall.weight_faults.int8 import BitFlip, QuantizedWeights
from seawall.weight_faults.search import WeightFault

Draw = Callable[[], Iterable[Batch]]
"""The held-out chips, the same at each call."""


@dataclass(frozen=True)
class ClassCounts:
    """Pixels of a class over all chips: in label and prediction, and in either."""

    both: int
    either: int

    @property
    def iou(self) -> float | None:
        """Intersection over union; None where neither has the class."""
        return self.both / self.either if self.either else None


@dataclass(frozen=True)
class FaultRound:
    """A round of flips and what it did.

    Args:
        flips: The bits.
        count: Bits flipped so far.
        counts: Pixels of the class on the held-out chips.
        seconds: CPU seconds that it took to choose and flip the bits.
        detected: Bits so far that lie in a group whose checksum differs.
    """

    flips: tuple[BitFlip, ...]
    count: int
    counts: ClassCounts
    seconds: float
    detected: int


@dataclass(frozen=True)
class FaultCurve:
    """A fault against a network, round by round.

    Args:
        clean: Counts with 8-bit weights and no flip.
        rounds: The rounds.
    """

    clean: ClassCounts
    rounds: tuple[FaultRound, ...]

    @property
    def flips_to_half(self) -> int | None:
        """Bits until the IoU is at most half of that without flips; None where it never was."""
        return next((one.count for one in self.rounds if is_halved(self.clean, one.counts)), None)

    @property
    def flips(self) -> tuple[BitFlip, ...]:
        """All bits in the order of their flips."""
        return tuple(flip for one in self.rounds for flip in one.flips)


def measure_fault(
    weights: QuantizedWeights, fault: WeightFault, batch: Batch, held_out: Draw, *, seed: int, most: int
) -> Iterator[ClassCounts | FaultRound]:
    """Yield the counts without flips, then every round, until the IoU is halved, `most` bits are flipped or none is left.

    Args:
        weights: The network; afterwards its bits stay flipped, until `int8_weights` ends.
        fault: Which bits are flipped.
        batch: What the adversary knows of the data.
        held_out: Chips that the IoU is measured on.
        seed: Seed of the fault.
        most: Bits after which to stop.

    Raises:
        DataError: The network finds nothing of the class on the held-out chips, so that there is nothing to halve.
        UsageError: `most` is below 1.
    """
    if most < 1:
        raise UsageError(f"most: expected at least 1 flip, got {most}; 100 is common")
    klass = weights.spec.klass(main_class(weights.spec.classes))
    clean = count_class(weights.model, held_out(), klass)
    if not clean.iou:
        name = weights.spec.classes[klass]
        raise DataError(
            f"weight fault: expected {name} that the network finds on the held-out chips, got none; measure other chips"
        )
    yield clean
    checksums, count, flips = WeightChecksums.of(weights.integers()), 0, list[BitFlip]()
    rounds = fault(weights, batch, seed)
    while count < most:
        began = time.process_time()
        new = next(rounds, ())
        spent = time.process_time() - began
        if not new:
            return
        flips += new
        count += len(new)
        changed = checksums.changed_groups(weights.integers())
        detected = sum(any(group.holds(flip.layer, flip.index, 1) for group in changed) for flip in flips)
        done = FaultRound(new, count, count_class(weights.model, held_out(), klass), spent, detected)
        yield done
        if is_halved(clean, done.counts):
            return


def fault_curve(found: Iterable[ClassCounts | FaultRound]) -> FaultCurve:
    """Return the curve of what `measure_fault` yields."""
    clean, *rounds = found
    if not isinstance(clean, ClassCounts):
        raise UsageError(
            "fault curve: expected the counts without flips first, got a round; give all that was measured"
        )
    return FaultCurve(clean, tuple(one for one in rounds if isinstance(one, FaultRound)))


def is_halved(clean: ClassCounts, now: ClassCounts) -> bool:
    """Return whether the IoU is at most half of what it was; one that is undefined is 0 here, as nothing was found."""
    return (now.iou or 0.0) <= (clean.iou or 0.0) / 2


def count_class(model: nn.Module, batches: Iterable[Batch], klass: int) -> ClassCounts:
    """Return the pixels of a class in label and prediction, and in either, over the valid pixels of all chips."""
    both = either = 0
    with eval_mode(model), torch.no_grad():
        for chips in batches:
            batch = to_device_of(model, chips)
            logits = model(batch.image)
            table = confusion(logits.argmax(1), batch.label, batch.valid, logits.shape[1]).sum(0)
            hit = int(table[klass, klass])
            both, either = both + hit, either + int(table[klass].sum() + table[:, klass].sum()) - hit
    return ClassCounts(both, either)
