"""Deals inseparable sets of chips into parts of given size, balanced by chips and by water share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seawall.errors import DataError

TRIES = 400  # random orders looked at; the balance gains less than a percent beyond


@dataclass(frozen=True)
class Unit:
    """Chips that must stay together, with their weight in the balance.

    Args:
        ids: Chip ids.
        chips: How many.
        water: Water pixels.
        valid: Valid pixels.
    """

    ids: tuple[str, ...]
    chips: int
    water: float
    valid: float


def deal(units: list[Unit], shares: list[float], seed: int, what: str) -> list[tuple[str, ...]]:
    """Deal units into parts and return the chip ids of each: of many random greedy deals the best balanced one.

    Args:
        units: What must stay together.
        shares: Share of the chips that each part should get; they sum to 1.
        seed: Chooses among equally balanced deals.
        what: What the units are, for the message.

    Raises:
        DataError: There are fewer units than parts.
    """
    if len(units) < len(shares):
        raise DataError(
            f"split: expected at least {len(shares)} separable {what}, got {len(units)}; use more groups, fewer parts, or blocks of ground (split.by=block)"
        )
    weight = np.array([[unit.chips, unit.water, unit.valid] for unit in units], np.float64)
    rng = np.random.default_rng([seed, len(units)])
    deals = [_greedy(weight[:, 0], np.array(shares), rng) for _ in range(TRIES)]
    # Rounded, so that deals that differ by the last bit of a sum count as equal on every machine.
    best = min(deals, key=lambda home: round(_imbalance(weight, home, np.array(shares)), 12))
    parts: list[list[str]] = [[] for _ in shares]
    for unit, part in zip(units, best, strict=True):
        parts[part].extend(unit.ids)
    return [tuple(sorted(part)) for part in parts]


def _greedy(chips: NDArray[np.float64], shares: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    order = np.argsort(-chips * rng.uniform(0.5, 1.5, len(chips)), kind="stable")
    load = np.zeros(len(shares))
    home = np.zeros(len(chips), np.int64)
    for place, unit in enumerate(order):
        empty = load == 0
        # The last units fill parts that are still empty, so that no part asked for stays without a group.
        open_ = empty if empty.sum() >= len(order) - place else np.ones(len(shares), bool)
        lack = np.where(open_, shares * chips.sum() - load, -np.inf)
        home[unit] = int(np.argmax(lack))
        load[home[unit]] += chips[unit]
    return home


def _imbalance(weight: NDArray[np.float64], home: NDArray[np.int64], shares: NDArray[np.float64]) -> float:
    sums = np.stack([weight[home == part].sum(0) for part in range(len(shares))])
    chips = sums[:, 0] / weight[:, 0].sum() - shares
    overall = weight[:, 1].sum() / max(1.0, weight[:, 2].sum())
    water = sums[:, 1] / np.maximum(1.0, sums[:, 2]) - overall
    return float((chips**2 / shares).sum() + (water**2 * shares).sum() / max(overall, 0.05))
