"""Poisoned chips betray themselves in what a network trained on them computes: two detectors, and their false alarms.

How large a score clean chips reach depends on the scenes, the network and the layer, so that no fixed number can say
where suspicion begins. With chips that are known to be clean ("trusted": labelled by hand, and not learned from) the
cut-off follows from their scores, for any false-alarm rate that is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional

from seawall.arrays import DoubleArray
from seawall.errors import DataError, UsageError
from seawall.modules import eval_mode, to_device_of
from seawall.types import Batch


@dataclass(frozen=True)
class Verdict:
    """What a detector says of each chip.

    Args:
        chips: Ids.
        scores: The higher, the more suspect.
        flagged: Whether the detector calls it poisoned.
        method: Name of the detector.
    """

    chips: tuple[str, ...]
    scores: DoubleArray
    flagged: NDArray[np.bool_]
    method: str

    def rates(self, poisoned: Iterable[str]) -> tuple[float | None, float | None]:
        """Return the share of poisoned chips that was flagged, and of clean ones (false alarms); None without any."""
        bad = np.isin(self.chips, list(poisoned))
        return tuple(float(self.flagged[at].mean()) if at.any() else None for at in (bad, ~bad))  # type: ignore[return-value]

    def auc(self, poisoned: Iterable[str]) -> float | None:
        """Return the probability that a poisoned chip has the higher score than a clean one; None without both."""
        bad = np.isin(self.chips, list(poisoned))
        if not bad.any() or bad.all():
            return None
        apart = self.scores[bad][:, None] - self.scores[~bad][None]
        return float(((apart > 0) + 0.5 * (apart == 0)).mean())


def activations(
    model: nn.Module, layer: nn.Module, batches: Iterable[Batch], klass: int | None = None
) -> tuple[tuple[str, ...], DoubleArray]:
    """Return one vector per chip: a layer's activations averaged over the valid pixels that are labelled so.

    Args:
        model: Trained on the chips; asked in eval mode and on its own device, its modes are put back.
        layer: One of its modules, such as the last block before the logits: on small networks the deepest one tells less.
        batches: The chips with the labels as given.
        klass: Average over pixels of this label only; all valid ones if None. Chips without such pixels are left out.

    Returns:
        Ids, and (N, D).

    Raises:
        DataError: The layer does not give maps (B, D, h, w), or no chip has such pixels.
    """
    caught: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, given, out: caught.append(out.detach()))
    chips, rows = list[str](), list[DoubleArray]()
    try:
        with eval_mode(model), torch.no_grad():
            for batch in batches:
                caught.clear()
                model(to_device_of(model, batch).image)
                if len(caught) != 1 or caught[0].ndim != 4:
                    raise DataError(
                        "activations: expected a layer that gives (B, D, h, w) once, got another; choose a block"
                    )
                at = batch.valid if klass is None else batch.valid & (batch.label == klass)
                weight = functional.adaptive_avg_pool2d(at.float()[:, None], (caught[0].shape[2], caught[0].shape[3]))
                weight = weight.to(caught[0].device)
                total = weight.sum((2, 3)).clamp_min(1e-12)
                mean = (caught[0] * weight).sum((2, 3)) / total
                for i, chip in enumerate(batch.chips):
                    if bool(at[i].any()):
                        chips.append(chip)
                        rows.append(mean[i].double().cpu().numpy())
    finally:
        hook.remove()
    if not rows:
        raise DataError(
            f"activations: expected chips with valid pixels of class {klass}, got none; choose another class"
        )
    return tuple(chips), np.stack(rows)


def spectral_signatures(
    chips: Sequence[str],
    features: DoubleArray,
    share: float | None = None,
    *,
    trusted: DoubleArray | None = None,
    alarms: float = 0.05,
) -> Verdict:
    """Score chips by how far they lie along the direction in which the chips differ most.

    Paper: Tran et al. 2018, arXiv:1811.00636, algorithm 1, whose cut-off needs the true share. Differs: with trusted
    chips the cut-off follows from their scores, and distances count from their median.

    Args:
        chips: Ids.
        features: (N, D).
        share: Expected share of poisoned chips; 1.5 times as many are flagged, on clean chips too.
        trusted: (M, D) of chips that are known to be clean and that the network did not learn; M from 1 / alarms - 1.
        alarms: With `trusted`, the share of clean chips that may be flagged, on average over such sets.
            Without a share and without trusted chips those beyond 2.5 robust deviations are flagged, which promises
            nothing: features of clean chips have long tails, and many poisons move them.

    Raises:
        DataError: The features are not one finite vector per chip.
        UsageError: Share, alarms or the number of trusted chips cannot be, or both share and trusted are given.
    """
    x = _centered(chips, features)
    known = _known(chips, features, trusted, alarms)
    if share is not None and (trusted is not None or not 0 <= share <= 1):
        raise UsageError(
            f"spectral-signatures.share: expected a share in [0, 1] or trusted chips, got {share} "
            f"{'with' if trusted is not None else 'without'} trusted chips; give one of them"
        )
    direction = np.linalg.svd(x, full_matrices=False)[2][0] if len(x) > 1 else np.zeros(x.shape[1])
    along = x @ direction
    if known is not None:
        calm = known @ direction
        scores = np.abs(along - np.median(calm))
        flags = beyond(scores, np.abs(calm - np.median(calm)), alarms)
        return Verdict(tuple(chips), scores, flags, "spectral-signatures")
    scores = along**2
    if share is None:
        flagged = robust_z(along) > 2.5
    else:
        flagged = np.zeros(len(x), bool)
        flagged[np.argsort(-scores, kind="stable")[: min(len(x), math.floor(1.5 * share * len(x)))]] = True
    return Verdict(tuple(chips), scores, flagged, "spectral-signatures")


def activation_clustering(
    chips: Sequence[str],
    features: DoubleArray,
    *,
    seed: int = 0,
    smallest: float = 0.25,
    gap: float = 0.4,
    trusted: DoubleArray | None = None,
    alarms: float = 0.05,
) -> Verdict:
    """Split chips into two clusters; the smaller one is suspect.

    With trusted chips those are flagged that lie nearer to the smaller cluster's center than trusted ones do; without,
    the whole smaller cluster if it is small and well separated, which a poisoned share above `smallest` never is.

    Paper: Chen et al. 2018, arXiv:1811.03728. Differs: principal instead of independent components, which need more
    chips than a campaign has, and a silhouette by distances to the two centers.

    Args:
        chips: Ids.
        features: (N, D).
        seed: Of the clustering.
        smallest: A cluster with at most this share of the chips can be poisoned.
        gap: Least silhouette for the two clusters to count as two.
        trusted: (M, D) of chips that are known to be clean and that the network did not learn; M from 1 / alarms - 1.
        alarms: With `trusted`, the share of clean chips that may be flagged, on average over such sets.

    Raises:
        DataError: The features are not one finite vector per chip.
        UsageError: Alarms or the number of trusted chips cannot be.
    """
    x = _centered(chips, features)
    known = _known(chips, features, trusted, alarms)
    if len(x) < 4:
        return Verdict(tuple(chips), np.zeros(len(x)), np.zeros(len(x), bool), "activation-clustering")
    _, sizes, axes = np.linalg.svd(x, full_matrices=False)
    kept = min(10, len(sizes), len(x) - 2)
    low = x @ axes[:kept].T
    home = KMeans(2, n_init=10, random_state=seed).fit_predict(low)
    minor = int(np.count_nonzero(home == 1) < len(home) / 2)
    means = np.stack([low[home == k].mean(0) for k in (0, 1)])
    apart = np.linalg.norm(low[:, None] - means[None], axis=2)
    scores = _nearness(apart, minor)
    if known is not None:
        calm = _nearness(np.linalg.norm((known @ axes[:kept].T)[:, None] - means[None], axis=2), minor)
        return Verdict(tuple(chips), scores, beyond(scores, calm, alarms), "activation-clustering")
    inside, outside = apart[np.arange(len(x)), home], apart[np.arange(len(x)), 1 - home]
    separation = float(np.mean((outside - inside) / np.maximum(np.maximum(outside, inside), 1e-12)))
    poisoned = np.mean(home == minor) <= smallest and separation >= gap
    return Verdict(tuple(chips), scores, (home == minor) & bool(poisoned), "activation-clustering")


def false_alarm_rate(
    detector: Callable[[Sequence[str], DoubleArray], Verdict],
    chips: Sequence[str],
    features: DoubleArray,
    *,
    draws: int = 200,
    seed: int = 0,
) -> float:
    """Return the share of clean chips that a detector flags, over random halves of clean chips.

    Args:
        detector: Such as `spectral_signatures`.
        chips: Ids of chips that are known to be clean.
        features: (N, D) of a network trained on them.
        draws: How many halves.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    rates = []
    for _ in range(draws):
        at = rng.permutation(len(chips))[: max(4, len(chips) // 2)]
        rates.append(float(detector([chips[i] for i in at], features[at]).flagged.mean()))
    return float(np.mean(rates))


def beyond(scores: DoubleArray, trusted: DoubleArray, alarms: float) -> NDArray[np.bool_]:
    """Return which scores are too high for a clean chip, by conformal p-values against trusted chips.

    A clean chip that is exchangeable with the trusted ones is flagged with a probability of at most `alarms`, whatever
    the distribution of the scores.

    Args:
        scores: (N,) of the chips in question.
        trusted: (M,) of chips known to be clean.
        alarms: False-alarm rate; M must be at least 1 / alarms - 1, or nothing can be flagged.

    Example:
        >>> beyond(np.array([19.5, 18.5]), np.arange(20.0), 0.05)
        array([ True, False])
    """
    reached = np.count_nonzero(trusted[None] >= scores[:, None], axis=1)
    return np.asarray((1 + reached) / (len(trusted) + 1) <= alarms + 1e-12)


def robust_z(values: DoubleArray) -> DoubleArray:
    """Return the distance from the median in robust standard deviations (1.4826 median absolute deviations)."""
    apart = np.abs(values - np.median(values))
    scale = 1.4826 * float(np.median(apart))
    return apart / scale if scale > 0 else np.where(apart > 0, np.inf, 0.0)


def _centered(chips: Sequence[str], features: DoubleArray) -> DoubleArray:
    if features.ndim != 2 or len(features) != len(chips) or not len(chips) or not np.isfinite(features).all():
        raise DataError(
            f"detector: expected a finite vector for each of {len(chips)} chips, got {features.shape}; use `activations`"
        )
    return np.asarray(features - features.mean(0), np.float64)


def _nearness(apart: DoubleArray, minor: int) -> DoubleArray:
    """Return how much nearer than to the large cluster's center one is to the small one's, in [-1, 1]."""
    return np.asarray((apart[:, 1 - minor] - apart[:, minor]) / np.maximum(apart.sum(1), 1e-12))


def _known(
    chips: Sequence[str], features: DoubleArray, trusted: DoubleArray | None, alarms: float
) -> DoubleArray | None:
    """Return trusted features about the same center as the chips' own."""
    if trusted is None:
        return None
    if trusted.ndim != 2 or trusted.shape[1] != features.shape[1] or not np.isfinite(trusted).all():
        raise DataError(
            f"detector: expected finite trusted features (M, {features.shape[1]}), got {trusted.shape}; use `activations` "
            "with the same model and layer"
        )
    if not 0 < alarms < 1 or (1 / (len(trusted) + 1)) > alarms + 1e-12:
        raise UsageError(
            f"detector.alarms: expected a rate in (0, 1) with at least 1 / alarms - 1 trusted chips, got {alarms} and "
            f"{len(trusted)} chips; trust more chips or allow more alarms"
        )
    return np.asarray(trusted - features.mean(0), np.float64)
