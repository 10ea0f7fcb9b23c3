"""What wrong labels do: models named `unet@erode-dilate-0.1`, put in rows of noise and rate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from seawall.report.book import Book


@dataclass(frozen=True)
class Corrupted:
    """A model that was trained on corrupted labels, taken apart by its name.

    Args:
        model: The whole name.
        base: The model that was trained on the labels as they are.
        noise: Name of the label noise.
        rate: Share of pixels (or the setting that the sweep varies); None where the name says none.
        loss: Loss that training went through the noise with; "" for the recipe's own.
    """

    model: str
    base: str
    noise: str
    rate: float | None
    loss: str

    @property
    def kind(self) -> str:
        """Rows of one kind make one curve over the rate."""
        return f"{self.noise}, {self.loss} loss" if self.loss else self.noise


def taken_apart(model: str) -> Corrupted | None:
    """Take a model's name apart; None for a model on labels as they are.

    Example:
        >>> c = taken_apart("unet@erode-dilate-0.1")
        >>> c.base, c.noise, c.rate
        ('unet', 'erode-dilate', 0.1)
        >>> taken_apart("unet@dilate-20%+gce").rate, taken_apart("unet@dilate-20%+gce").kind
        (0.2, 'dilate, gce loss')
        >>> taken_apart("mndwi") is None
        True
    """
    base, found, rest = model.partition("@")
    if not found:
        return None
    body, _, loss = rest.partition("+")
    rated = re.fullmatch(r"(.+?)-(\d*\.?\d+(?:e-?\d+)?)(%?)", body)
    if not rated:
        return Corrupted(model, base, body, None, loss)
    rate = float(rated[2]) / (100 if rated[3] else 1)
    return Corrupted(model, base, rated[1], rate, loss)


def corrupted(book: Book) -> list[Corrupted]:
    """Return every model trained on corrupted labels, by kind and rate."""
    found = [c for c in map(taken_apart, book.models) if c]
    first = {kind: i for i, kind in reversed(list(enumerate(c.kind for c in found)))}
    return sorted(found, key=lambda c: (c.base, first[c.kind], c.rate is None, c.rate or 0.0))


def kinds(models: Sequence[Corrupted]) -> list[str]:
    """Return the kinds of noise, in order."""
    return list(dict.fromkeys(c.kind for c in models))
