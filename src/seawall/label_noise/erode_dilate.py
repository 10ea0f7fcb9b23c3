"""Erosion and dilation of labels: the shoreline moves by rings of pixels, and the budget is never exceeded."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar, Literal, final

import numpy as np

from seawall.arrays import BoolArray
from seawall.errors import DataError, UsageError
from seawall.label_noise.label_difference import allowed_pixels
from seawall.label_noise.label_view import (
    BudgetOf,
    Label,
    LabelView,
    allowance,
    change_labels,
    check_budget,
    check_class,
    meters_to_pixels,
)
from seawall.label_noise.morphology import Steps, closings, dilations, erosions, openings
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch

KERNELS = (3, 5, 7)
EROSION_ODDS = ((0.4, (0.15, 0.15, 0.70)), (0.2, (0.15, 0.70, 0.15)), (-1.0, (0.70, 0.15, 0.15)))
"""Water share above which the SRIP report draws kernels 3, 5, 7 with these odds; dilation has them reversed."""

SRIP_REPORT = "SRIP report, GVCL 2024"


@dataclass(frozen=True)
class Morphology(ABC):
    """Base of erosion, dilation, opening and closing: a square kernel is iterated while the budget lasts.

    Args:
        budget: Largest change: a share, or meters with `of="meters"`.
        of: Share of all "valid" pixels, share of the pixels of the "class", or shoreline "meters".
        exact: Fill the budget to the pixel with keyed pixels of the next ring only.
        kernel: Side of the square, odd; "srip" draws 3, 5 or 7 by the chip's water share as the report does.
        iterations: Most iterations, 1 to 100.
        klass: Class index of the mask.
        gsd_m: Meters per pixel, needed for `of="meters"`.
    """

    budget: float
    of: BudgetOf = "valid"
    exact: bool = False
    kernel: int | Literal["srip"] = 3
    iterations: int = 100
    klass: int = 1
    gsd_m: float | None = None

    name: ClassVar[str]

    def __post_init__(self) -> None:
        check_budget(self.name, self.budget, self.of, self.gsd_m)
        check_class(self.name, self.klass)
        if self.kernel != "srip" and (isinstance(self.kernel, str) or self.kernel < 3 or self.kernel % 2 == 0):
            raise UsageError(f"{self.name}.kernel: expected 'srip' or an odd side from 3, got {self.kernel!r}; use 3")
        if not 1 <= self.iterations <= 100:
            raise UsageError(f"{self.name}.iterations: expected 1 to 100, got {self.iterations}; use 100")

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with its shorelines moved."""
        return change_labels(batch, keys.fold(self.name), self.klass, self.change)

    @abstractmethod
    def steps(self) -> Steps:
        """Return the operation, as an iterator over its steps."""

    @abstractmethod
    def odds(self, share: float) -> tuple[float, ...]:
        """Return the report's odds of the kernels 3, 5 and 7 at a water share."""

    def change(self, view: LabelView) -> Label:
        """Return one chip's new label."""
        water = int(np.count_nonzero(view.mask))
        if self.budget == 0 or water == 0 or water == view.pixels:
            return view.label
        kernel = self._kernel(view, water / view.pixels)
        walk = islice(self.steps()(view, kernel), self.iterations)
        if self.of == "meters" and self.gsd_m is not None:
            return view.flip(self._by_meters(view, walk, kernel, self.gsd_m))
        cap = allowance(self.budget, water if self.of == "class" else view.pixels)
        done = np.zeros_like(view.mask)
        for reached in walk:
            if np.count_nonzero(reached) > cap:
                return view.flip(self._fill(view, done, reached, cap) if self.exact else done)
            done = reached
        return view.flip(done)

    def _by_meters(self, view: LabelView, walk: islice[BoolArray], kernel: int, gsd_m: float) -> BoolArray:
        allowed = meters_to_pixels(self.budget, gsd_m) / (kernel // 2)
        done = np.zeros_like(view.mask)
        for n, reached in enumerate(walk, 1):
            if n > allowed:
                if not self.exact:
                    return done
                ring = np.count_nonzero(reached) - np.count_nonzero(done)
                part = int((allowed - (n - 1)) * int(ring))
                return self._fill(view, done, reached, int(np.count_nonzero(done)) + part)
            done = reached
        return done

    def _fill(self, view: LabelView, done: BoolArray, reached: BoolArray, cap: int) -> BoolArray:
        return done | view.sample(reached & ~done, cap - int(np.count_nonzero(done)), "ring")

    def _kernel(self, view: LabelView, share: float) -> int:
        if self.kernel != "srip":
            return int(self.kernel)
        return int(view.rng("kernel").choice(KERNELS, p=self.odds(share)))


def erosion_odds(share: float) -> tuple[float, ...]:
    """Return the report's odds of kernels 3, 5 and 7 for erosion.

    Example:
        >>> erosion_odds(0.5), erosion_odds(0.4)
        ((0.15, 0.15, 0.7), (0.15, 0.7, 0.15))
    """
    return next(odds for above, odds in EROSION_ODDS if share > above)


@register("noise", "erode", paper=SRIP_REPORT, smoke={"budget": 0.05})
@final
@dataclass(frozen=True)
class Erode(Morphology):
    """Erosion: the outer rings of the mask become the nearest other class.

    The settings are those of `Morphology`.

    Paper: SRIP report, morphological attack. Differs: pixels without a label neither change nor erode their
    neighbors; an empty or full mask does not change.

    Example:
        >>> import torch
        >>> label = torch.zeros(1, 5, 5, dtype=torch.int64)
        >>> label[:, 1:4, 1:4] = 1
        >>> batch = Batch.of(torch.zeros(1, 1, 5, 5), label)
        >>> int(Erode(budget=0.35)(batch, Keys(0, batch.chips)).label.sum())
        1
    """

    name: ClassVar[str] = "erode"

    def steps(self) -> Steps:
        return erosions

    def odds(self, share: float) -> tuple[float, ...]:
        return erosion_odds(share)


@register("noise", "dilate", paper=SRIP_REPORT, smoke={"budget": 0.05})
@final
@dataclass(frozen=True)
class Dilate(Morphology):
    """Dilation: the rings around the mask join the class.

    The settings are those of `Morphology`.

    Paper: SRIP report, morphological attack. Differs: the budget is never exceeded, where the report's dilation
    returns the first mask beyond it.

    Example:
        >>> import torch
        >>> label = torch.zeros(1, 5, 5, dtype=torch.int64)
        >>> label[:, 2, 2] = 1
        >>> batch = Batch.of(torch.zeros(1, 1, 5, 5), label)
        >>> int(Dilate(budget=0.2, exact=True)(batch, Keys(0, batch.chips)).label.sum())
        6
    """

    name: ClassVar[str] = "dilate"

    def steps(self) -> Steps:
        return dilations

    def odds(self, share: float) -> tuple[float, ...]:
        return tuple(reversed(erosion_odds(share)))


@register("noise", "open", smoke={"budget": 0.05})
@final
@dataclass(frozen=True)
class Open(Morphology):
    """Opening: the mask loses what is narrower than the square, such as ponds and channels.

    The settings are those of `Morphology`.
    """

    name: ClassVar[str] = "open"

    def steps(self) -> Steps:
        return openings

    def odds(self, share: float) -> tuple[float, ...]:
        return erosion_odds(share)


@register("noise", "close", smoke={"budget": 0.05})
@final
@dataclass(frozen=True)
class Close(Morphology):
    """Closing: the mask gains what is narrower than the square, such as islands and causeways.

    The settings are those of `Morphology`.
    """

    name: ClassVar[str] = "close"

    def steps(self) -> Steps:
        return closings

    def odds(self, share: float) -> tuple[float, ...]:
        return tuple(reversed(erosion_odds(share)))


Treatment = Literal["erode", "dilate", "untouched"]
TREATMENTS: tuple[Treatment, ...] = ("erode", "dilate", "untouched")


def assign_thirds(ids: Sequence[str], seed: int | None = None) -> dict[str, Treatment]:
    """Split chips into three parts: the first third is eroded, the second dilated, the rest stays as it is.

    Args:
        ids: Chips of the training part, in file order.
        seed: None keeps the file order, as the report does; a number orders the chips by key first.

    Returns:
        The part of each chip. Sizes differ by at most one.

    Raises:
        DataError: An id comes twice.

    Example:
        >>> assign_thirds(["a", "b", "c", "d"])
        {'a': 'erode', 'b': 'erode', 'c': 'dilate', 'd': 'untouched'}
    """
    if len(set(ids)) != len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise DataError(f"thirds: expected each chip once, got {twice!r} twice; remove the repetition")
    order = list(ids) if seed is None else sorted(ids, key=lambda name: _draw_order(seed, name))
    rows = iter(order)
    parts: dict[str, Treatment] = {}
    for i, part in enumerate(TREATMENTS):
        size = len(order) // 3 + (i < len(order) % 3)
        parts.update(dict.fromkeys(islice(rows, size), part))
    return parts


def _draw_order(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}\x1fthirds\x1f{name}".encode(), digest_size=8).digest()


@register("noise", "thirds", paper=SRIP_REPORT, smoke={"budget": 0.05})
@final
@dataclass(frozen=True)
class Thirds:
    """A third of the chips eroded, a third dilated, a third untouched.

    Args:
        budget: As of `Morphology`.
        of: As of `Morphology`.
        exact: As of `Morphology`.
        kernel: As of `Morphology`; the report draws it.
        klass: Class index of the mask.
        gsd_m: Meters per pixel, needed for `of="meters"`.
        parts: Part of each chip, made by `assign_thirds` from the training part. Empty: each chip draws its own
            part from its key, and thirds are expected values only.

    Paper: SRIP report, section on morphological attacks. Differs: as `Erode` and `Dilate`.
    """

    budget: float
    of: BudgetOf = "valid"
    exact: bool = False
    kernel: int | Literal["srip"] = "srip"
    klass: int = 1
    gsd_m: float | None = None
    parts: Mapping[str, Treatment] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._both()
        for chip, part in self.parts.items():
            if part not in TREATMENTS:
                raise UsageError(
                    f"thirds.parts.{chip}: expected one of {', '.join(TREATMENTS)}, got {part!r}; correct it"
                )

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch, each chip eroded, dilated or unchanged by its part.

        Raises:
            DataError: A chip has no part.
        """
        erode, dilate = self._both()
        own = keys.fold("thirds")
        changes = {"erode": erode.change, "dilate": dilate.change}

        def change(view: LabelView) -> Label:
            part = self.part(batch.chips[view.index], own, view.index)
            return view.label if part == "untouched" else changes[part](view)

        return change_labels(batch, own, self.klass, change)

    def allowed(self, batch: Batch) -> tuple[int | None, ...]:
        """Return the most pixels of each chip that may change: 0 in the untouched third; None where parts are drawn."""
        if not self.parts:
            return (None,) * len(batch)
        treated = allowed_pixels(self._both()[0], batch)
        parts = map(self._assigned, batch.chips)
        return tuple(0 if part == "untouched" else most for part, most in zip(parts, treated, strict=True))

    def part(self, chip: str, keys: Keys, index: int) -> Treatment:
        """Return the part of a chip; a patch "chip@..." has the part of its chip."""
        if not self.parts:
            return TREATMENTS[int(keys.fold("part").numpy(index).integers(3))]
        return self._assigned(chip)

    def _assigned(self, chip: str) -> Treatment:
        found = self.parts.get(chip) or self.parts.get(chip.split("@", 1)[0])
        if found is None:
            raise DataError(f"thirds: expected a part for chip {chip!r}, got none; assign all training chips")
        return found

    def _both(self) -> tuple[Erode, Dilate]:
        erode = Erode(self.budget, self.of, self.exact, self.kernel, 100, self.klass, self.gsd_m)
        return erode, Dilate(self.budget, self.of, self.exact, self.kernel, 100, self.klass, self.gsd_m)
