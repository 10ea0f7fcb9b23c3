"""Conformal risk control: a water map that misses at most a stated share, on average over new scenes.

The unit that must be exchangeable is the scene: pixels and tiles of one scene are not independent, so their number
gives no guarantee.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seawall.errors import DataError, UsageError
from seawall.modules import to_device_of
from seawall.types import Batch, SegmentationModel

THRESHOLD_STEPS = 1000


@dataclass(frozen=True)
class Conformal:
    """A threshold on a class's probability with a guarantee over scenes.

    Args:
        klass: The class.
        alpha: The share of its pixels that may be missed, in expectation over a new scene that has some.
        threshold: Pixels at or above it are mapped as the class; None where no threshold has the guarantee.
        scenes: Number of calibration scenes with the class.
        needed: Number of scenes that any guarantee at this alpha needs.
        risk: Mean missed share of the calibration scenes at the threshold; None without a threshold.
    """

    klass: str
    alpha: float
    threshold: float | None
    scenes: int
    needed: int
    risk: float | None

    def mask(self, probability: Tensor) -> Tensor:
        """Return where the class is mapped.

        Raises:
            DataError: There is no threshold.
        """
        if self.threshold is None:
            raise DataError(
                f"conformal: expected at least {self.needed} scenes with {self.klass} for alpha {self.alpha:g}, got "
                f"{self.scenes}; calibrate on more scenes or raise alpha"
            )
        return probability.double() >= self.threshold


def conformal_threshold(
    risks: NDArray[np.float64], lambdas: NDArray[np.float64], alpha: float, bound: float = 1.0
) -> float | None:
    """Return the least conservative lambda whose expected risk on a new scene is at most alpha.

    Args:
        risks: (n, L) loss of each scene at each lambda, growing along L, at most `bound`.
        lambdas: (L,) growing.
        alpha: Risk that is allowed.
        bound: Largest possible loss.

    Returns:
        The lambda, or None where none has the guarantee: too few scenes, or too much risk at every lambda.

    Raises:
        UsageError: alpha is not inside (0, bound), or the risks do not grow.

    Paper: Angelopoulos et al. 2022, arXiv:2208.02814, eq. 4.

    Example:
        >>> risks = np.array([[0.0, 0.1, 0.6]] * 19)
        >>> conformal_threshold(risks, np.array([0.0, 0.5, 1.0]), 0.2)
        0.5
        >>> conformal_threshold(risks[:3], np.array([0.0, 0.5, 1.0]), 0.2) is None
        True
    """
    if not 0 < alpha < bound:
        raise UsageError(f"conformal: expected alpha inside (0, {bound:g}), got {alpha}; 0.1 is usual")
    if risks.ndim != 2 or risks.shape[1] != len(lambdas) or (np.diff(risks, axis=1) < -1e-12).any():
        raise UsageError(
            f"conformal: expected risks (n, {len(lambdas)}) that grow with lambda, got "
            f"{risks.shape}{'' if risks.ndim != 2 or risks.shape[1] != len(lambdas) else ' that fall'}; sort lambdas from cautious to bold"
        )
    n = len(risks)
    if not n:
        return None
    ok = (risks.sum(0) + bound) / (n + 1) <= alpha + 1e-12
    return float(lambdas[ok][-1]) if ok.any() else None


def missed_shares(
    model: SegmentationModel, batches: Iterable[Batch], scenes: Mapping[str, str], klass: str = "water"
) -> dict[str, NDArray[np.float64]]:
    """Return, per scene with the class, the share of its pixels below each threshold i / 1000.

    Args:
        model: In eval mode.
        batches: Chips.
        scenes: Scene of each chip; chips of one scene are pooled, a chip without one is its own scene.
        klass: The class.

    Returns:
        Scene to (1001,) missed shares at the thresholds 0, 0.001, ... 1. Scenes without the class are left out.
    """
    k = model.spec.klass(klass)
    counts: dict[str, NDArray[np.int64]] = {}
    for chips in batches:
        batch = to_device_of(model, chips)
        with torch.no_grad():
            share = torch.softmax(model(batch.image).cpu().double(), 1)[:, k]
        for i, chip in enumerate(batch.chips):
            held = share[i][(batch.valid[i] & (batch.label[i] == k)).cpu()].numpy()
            # a pixel of probability p is kept by thresholds up to p: it is missed from the next step on
            step = np.floor(held * THRESHOLD_STEPS).astype(np.int64) + 1
            scene = scenes.get(chip, chip)
            counts[scene] = counts.get(scene, np.zeros(THRESHOLD_STEPS + 2, np.int64)) + np.bincount(
                step, minlength=THRESHOLD_STEPS + 2
            )
    return {s: np.cumsum(c)[: THRESHOLD_STEPS + 1] / c.sum() for s, c in sorted(counts.items()) if c.sum()}


def fit_conformal(
    model: SegmentationModel,
    batches: Iterable[Batch],
    scenes: Mapping[str, str],
    *,
    klass: str = "water",
    alpha: float = 0.1,
) -> Conformal:
    """Return the highest threshold that misses at most `alpha` of a class, on average over new scenes.

    Args:
        model: In eval mode.
        batches: Held-out chips; one scene's chips are one observation, whatever their number.
        scenes: Scene of each chip.
        klass: The class.
        alpha: Share that may be missed.
    """
    shares = missed_shares(model, batches, scenes, klass)
    risks = np.array(list(shares.values())).reshape(-1, THRESHOLD_STEPS + 1)
    lambdas = np.arange(THRESHOLD_STEPS + 1) / THRESHOLD_STEPS
    threshold = conformal_threshold(risks, lambdas, alpha)
    needed = math.ceil(1 / alpha - 1 - 1e-9)
    risk = None if threshold is None else float(risks[:, round(threshold * THRESHOLD_STEPS)].mean())
    return Conformal(klass, alpha, threshold, len(risks), needed, risk)
