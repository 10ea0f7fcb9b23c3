"""What wrong labels do: networks that learned from them, by noise, by what was asked for and by what was reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seawall.report.folder import NoiseFacts
from seawall.report.words import DASH, percent, plain


@dataclass(frozen=True)
class Corrupted:
    """A network that was trained on corrupted labels.

    Args:
        model: Its name in the rows.
        base: The network that was trained on the labels as they are.
        noise: Name of the label noise.
        asked: What was asked for: a share of pixels, or the setting that the sweep varies.
        reached: Share of the valid training pixels that the noise changed.
        objective: Loss or objective that training went through the noise with; "" for the recipe's own.
    """

    model: str
    base: str
    noise: str
    asked: float | None = None
    reached: float | None = None
    objective: str = ""

    @staticmethod
    def of(model: str, facts: NoiseFacts) -> Corrupted:
        """Return what the run says about one of its networks."""
        return Corrupted(model, facts.model, facts.noise, facts.rate, facts.changed_share, facts.objective)

    @property
    def kind(self) -> str:
        """Rows of one kind make one curve over the share that was changed."""
        return f"{self.noise}, by {self.objective}" if self.objective else self.noise

    @property
    def rate(self) -> str:
        """What was asked for, in words: a share as a percentage, any other setting as a number."""
        if self.asked is None:
            return DASH
        return percent(self.asked) if self.asked <= 1 else plain(self.asked)

    @property
    def changed(self) -> str:
        """What was reached, in words."""
        return percent(self.reached)

    @property
    def label(self) -> str:
        """Noise, what was asked for, and what was reached.

        Example:
            >>> Corrupted("m", "unet", "thirds", 0.1, 0.02).label
            'thirds 10\u202f% (2\u202f% changed)'
        """
        reached = "" if self.reached is None else f" ({self.changed} changed)"
        way = f", by {self.objective}" if self.objective else ""
        return f"{self.noise} {self.rate}{reached}{way}"


def corrupted(models: Sequence[str], noises: Mapping[str, NoiseFacts]) -> list[Corrupted]:
    """Return every network trained on corrupted labels, by kind and by what was asked for.

    Args:
        models: Names in the rows.
        noises: What the run says about the labels of its networks.
    """
    found = [Corrupted.of(model, noises[model]) for model in models if model in noises]
    first = {kind: i for i, kind in reversed(list(enumerate(c.kind for c in found)))}
    return sorted(found, key=lambda c: (c.base, first[c.kind], c.asked is None, c.asked or 0.0))


def kinds(models: Sequence[Corrupted]) -> list[str]:
    """Return the kinds of noise, in order."""
    return list(dict.fromkeys(c.kind for c in models))
