"""Point labels: some pixels of each class, as an annotator clicks them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from seawall.arrays import BoolArray
from seawall.errors import UsageError
from seawall.label_noise.label_view import LabelView
from seawall.label_noise.morphology import distance_to
from seawall.registry import register
from seawall.rng import Keys
from seawall.supervision.known_pixels import check_count, keep_known
from seawall.types import Batch


@register("supervision", "points", paper="arXiv:2101.03492", smoke={"count": 4})
@final
@dataclass(frozen=True)
class Points:
    """Some pixels of each class of each chip are known, drawn at random; a larger count keeps those of a smaller one.

    Args:
        count: Known pixels per class and chip; all of them where a class has fewer.
        within: Pixels of the class between a point and the border at least, in each direction; 0 takes any pixel. A class that is
            nowhere so wide has no point in that chip.

    Paper: Hua et al. 2021, section III-A. Differs: the points are drawn from dense labels instead of clicked.
    """

    count: int = 3
    within: int = 0

    def __post_init__(self) -> None:
        check_count("points", self.count)
        if self.within < 0:
            raise UsageError(f"points.within: expected pixels from 0 up, got {self.within}; 0 takes any pixel")

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with its points valid."""
        return keep_known(batch, keys.fold("points"), self._choose)

    def _choose(self, view: LabelView) -> BoolArray:
        inside: BoolArray = view.mask & (distance_to(view.rest) > self.within) if self.within else view.mask
        return view.sample(inside, self.count, "where")
