"""The report's experiment: a third of the training chips eroded, a third dilated, a third untouched."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, final

from seawall.errors import DataError, UsageError
from seawall.poison.budget import Of
from seawall.poison.ground import Ground, Label, relabel
from seawall.poison.morphology import REPORT, Dilate, Erode
from seawall.poison.realized import allowed_pixels
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch

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
