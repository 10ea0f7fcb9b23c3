"""Morphological label attacks: the shoreline moves by rings of pixels within a budget that is never exceeded."""

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
from seawall.label_noise.label_view import Ground, Label, Of, allowance, check_budget, check_class, relabel, rings_of
from seawall.label_noise.morphology import Steps, closings, dilations, erosions, openings
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch

KERNELS = (3, 5, 7)
EROSION_ODDS = ((0.4, (0.15, 0.15, 0.70)), (0.2, (0.15, 0.70, 0.15)), (-1.0, (0.70, 0.15, 0.15)))
"""Water share above which the SRIP report draws kernels 3, 5, 7 with these odds; dilation has them reversed."""

REPORT = "SRIP report, GVCL 2024"


@dataclass(frozen=True)
class Morphology(ABC):
    """What erosion, dilation, opening and closing share: iterate a square kernel while the budget lasts.

    Args:
        budget: What may change at most: a share, or meters with `of="meters"`.
        of: Share of all "valid" pixels, share of the pixels of the "class", or shoreline "meters".
        exact: Fill the budget to the pixel with keyed pixels of the next ring only.
        kernel: Side of the square, odd; "srip" draws 3, 5 or 7 by the chip's water share as the report does.
        iterations: At most so many, 1 to 100.
        klass: The class index that the mask is of.
        gsd_m: Meters per pixel, needed for `of="meters"`.
    """

    budget: float
    of: Of = "valid"
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
        return relabel(batch, keys.fold(self.name), self.klass, self.change)

    @abstractmethod
    def steps(self) -> Steps:
        """Return how the mask changes, iteration by iteration."""

    @abstractmethod
    def odds(self, share: float) -> tuple[float, ...]:
        """Return the report's odds of the kernels 3, 5 and 7 at a water share."""

    def change(self, ground: Ground) -> Label:
        """Return one chip's new label."""
        water = int(np.count_nonzero(ground.mask))
        if self.budget == 0 or water == 0 or water == ground.pixels:
            return ground.label
        kernel = self._kernel(ground, water / ground.pixels)
        walk = islice(self.steps()(ground, kernel), self.iterations)
        if self.of == "meters" and self.gsd_m is not None:
            return ground.flip(self._by_meters(ground, walk, kernel, self.gsd_m))
        cap = allowance(self.budget, water if self.of == "class" else ground.pixels)
        done = np.zeros_like(ground.mask)
        for reached in walk:
            if np.count_nonzero(reached) > cap:
                return ground.flip(self._fill(ground, done, reached, cap) if self.exact else done)
            done = reached
        return ground.flip(done)

    def _by_meters(self, ground: Ground, walk: islice[BoolArray], kernel: int, gsd_m: float) -> BoolArray:
        allowed = rings_of(self.budget, gsd_m) / (kernel // 2)
        done = np.zeros_like(ground.mask)
        for n, reached in enumerate(walk, 1):
            if n > allowed:
                if not self.exact:
                    return done
                ring = np.count_nonzero(reached) - np.count_nonzero(done)
                part = int((allowed - (n - 1)) * int(ring))
                return self._fill(ground, done, reached, int(np.count_nonzero(done)) + part)
            done = reached
        return done

    def _fill(self, ground: Ground, done: BoolArray, reached: BoolArray, cap: int) -> BoolArray:
        return done | ground.pick(reached & ~done, cap - int(np.count_nonzero(done)), "ring")

    def _kernel(self, ground: Ground, share: float) -> int:
        if self.kernel != "srip":
            return int(self.kernel)
        return int(ground.rng("kernel").choice(KERNELS, p=self.odds(share)))


def erosion_odds(share: float) -> tuple[float, ...]:
    """Return the report's odds of kernels 3, 5 and 7 for erosion.

    Example:
        >>> erosion_odds(0.5), erosion_odds(0.4)
        ((0.15, 0.15, 0.7), (0.15, 0.7, 0.15))
    """
    return next(odds for above, odds in EROSION_ODDS if share > above)


@register("noise", "erode", paper=REPORT, smoke={"budget": 0.05})
@final
@dataclass(frozen=True)
class Erode(Morphology):
    """The mask shrinks: its outer rings become the nearest other class.

    Args: as `Morphology`.

    Paper: SRIP report, morphological attack. Differs: pixels without a label neither change nor erode their
    neighbors; an empty or full mask ends at once.

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


@register("noise", "dilate", paper=REPORT, smoke={"budget": 0.05})
@final
@dataclass(frozen=True)
class Dilate(Morphology):
    """The mask grows: the rings around it join the class.

    Args: as `Morphology`.

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
    """The mask loses what is narrower than the square: ponds, channels, spits of water.

    Args: as `Morphology`.
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
    """The mask gains what is narrower than the square: islands, causeways, spits of land.

    Args: as `Morphology`.
    """

    name: ClassVar[str] = "close"

    def steps(self) -> Steps:
        return closings

    def odds(self, share: float) -> tuple[float, ...]:
        return tuple(reversed(erosion_odds(share)))


Part = Literal["erode", "dilate", "untouched"]
PARTS: tuple[Part, ...] = ("erode", "dilate", "untouched")


def assign_thirds(ids: Sequence[str], seed: int | None = None) -> dict[str, Part]:
    """Split chips into three parts: the first third is eroded, the second dilated, the rest is left alone.

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
    order = list(ids) if seed is None else sorted(ids, key=lambda name: _draw(seed, name))
    rows = iter(order)
    parts: dict[str, Part] = {}
    for i, part in enumerate(PARTS):
        size = len(order) // 3 + (i < len(order) % 3)
        parts.update(dict.fromkeys(islice(rows, size), part))
    return parts


def _draw(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}\x1fthirds\x1f{name}".encode(), digest_size=8).digest()


@register("noise", "thirds", paper=REPORT, smoke={"budget": 0.05})
@final
@dataclass(frozen=True)
class Thirds:
    """A third of the chips eroded, a third dilated, a third untouched.

    Args:
        budget: As of `Morphology`.
        of: As of `Morphology`.
        exact: As of `Morphology`.
        kernel: As of `Morphology`; the report draws it.
        klass: The class index that the mask is of.
        gsd_m: Meters per pixel, needed for `of="meters"`.
        parts: Part of each chip, made by `assign_thirds` from the training part. Empty: each chip draws its own
            part from its key, so that the thirds are only expected sizes.

    Paper: SRIP report, section on morphological attacks. Differs: as `Erode` and `Dilate`.
    """

    budget: float
    of: Of = "valid"
    exact: bool = False
    kernel: int | Literal["srip"] = "srip"
    klass: int = 1
    gsd_m: float | None = None
    parts: Mapping[str, Part] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._both()
        for chip, part in self.parts.items():
            if part not in PARTS:
                raise UsageError(f"thirds.parts.{chip}: expected one of {', '.join(PARTS)}, got {part!r}; correct it")

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with each chip treated as its part says.

        Raises:
            DataError: A chip has no part.
        """
        erode, dilate = self._both()
        own = keys.fold("thirds")
        made = {"erode": erode.change, "dilate": dilate.change}

        def change(ground: Ground) -> Label:
            part = self.part(batch.chips[ground.index], own, ground.index)
            return ground.label if part == "untouched" else made[part](ground)

        return relabel(batch, own, self.klass, change)

    def allowed(self, batch: Batch) -> tuple[int | None, ...]:
        """Return the most pixels of each chip that may change: 0 in the untouched third; None where parts are drawn."""
        if not self.parts:
            return (None,) * len(batch)
        treated = allowed_pixels(self._both()[0], batch)
        parts = map(self._assigned, batch.chips)
        return tuple(0 if part == "untouched" else most for part, most in zip(parts, treated, strict=True))

    def part(self, chip: str, keys: Keys, index: int) -> Part:
        """Return the part of a chip; a patch "chip@..." has the part of its chip."""
        if not self.parts:
            return PARTS[int(keys.fold("part").numpy(index).integers(3))]
        return self._assigned(chip)

    def _assigned(self, chip: str) -> Part:
        found = self.parts.get(chip) or self.parts.get(chip.split("@", 1)[0])
        if found is None:
            raise DataError(f"thirds: expected a part for chip {chip!r}, got none; assign all training chips")
        return found

    def _both(self) -> tuple[Erode, Dilate]:
        erode = Erode(self.budget, self.of, self.exact, self.kernel, 100, self.klass, self.gsd_m)
        return erode, Dilate(self.budget, self.of, self.exact, self.kernel, 100, self.klass, self.gsd_m)
