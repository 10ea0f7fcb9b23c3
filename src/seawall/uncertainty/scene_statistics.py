"""How the windows of the training scenes look, and whether a new scene looks like them: one p-value per scene, with causes.

A window is a square of the size of a chip. It is described by band statistics, not by what a network makes of it, so that
the description needs no label, no forward pass and no gradient, and its entries can be named to people. A scene is one
observation: windows of one scene are not independent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from seawall.arrays import BoolArray, DoubleArray, FloatArray
from seawall.bands import short_band
from seawall.errors import DataError
from seawall.labels.water_indices import NormalizedDifference
from seawall.metrics.detection import check_clean_groups, conformal_flags, conformal_p_values
from seawall.types import Batch, Setting, Units, units_of
from seawall.uncertainty.mahalanobis import GroupScores, Mahalanobis, fit_mahalanobis, left_out_flags, left_out_scores

UNLIKE_TRAINING = "unlike-training"
"""Flag of a map of a scene that does not look like the training scenes."""
WINDOW_PIXELS = 128
"""Largest side of a window in pixels."""
LEAST_SEEN = 0.25
"""Share of a window's pixels that must be seen in every band, or the window is left out."""
QUANTILES = (5, 50, 95)
MOST_CAUSES = 3
MOST_BOUNDED = 3.0
"""Largest standardized deviation of what is bounded anyhow: correlations and NDWI. Where bands hardly vary, as over a lake, their correlation is that
of their noise, and in a scene of water alone the lowest NDWI is far from that of all others. Without the limit such scenes of the training
set the cut-off, and hazy and doubled HLS chips are flagged a third as often or less."""
CORRELATION, INDEX = "correlation", "NDWI"
NDWI = NormalizedDifference("green", "nir")


@dataclass(frozen=True)
class Familiarity:
    """Whether a scene looks like the training scenes.

    Args:
        score: Median over its windows of the Mahalanobis distance from the mean training scene.
        p_value: Share of scenes like those of the training that are at least as far.
        unusual: Whether the p-value is at most the false-alarm rate.
        causes: What is farthest from the training scenes, in words with numbers, the first cause first.
        windows: Number of windows.
    """

    score: float
    p_value: float
    unusual: bool
    causes: tuple[str, ...]
    windows: int


@dataclass(frozen=True)
class SceneStatistics:
    """Statistics of the training scenes, which judge new ones; `fit_scene_statistics` returns them.

    Args:
        names: (D,) what the entries of a window's vector are, as `entry_names` has them.
        window: Side of a window in pixels.
        alarms: Share of scenes like those of the training that may be flagged.
        distance: From the mean scene, one row per scene.
        low: (D,) smallest value of a scene.
        high: (D,) largest value of a scene.
        scores: (n,) score of each training scene by statistics of other scenes.
        realized: Share of the training scenes that statistics of the others alone flag; None where those are too few.
    """

    names: tuple[str, ...]
    window: int
    alarms: float
    distance: Mahalanobis
    low: DoubleArray
    high: DoubleArray
    scores: DoubleArray
    realized: float | None

    def judge(self, windows: DoubleArray) -> Familiarity:
        """Return whether a scene looks like the training scenes.

        Args:
            windows: (W, D) vectors of its windows, as `describe_windows` returns them.

        Raises:
            DataError: There is no window, or the vectors have other entries.
        """
        self._check(windows)
        score = self.score(windows)
        p_value = float(conformal_p_values(np.array([score]), self.scores)[0])
        unusual = bool(conformal_flags(np.array([score]), self.scores, self.alarms)[0])
        return Familiarity(score, p_value, unusual, self._causes(windows), len(windows))

    def score(self, windows: DoubleArray) -> float:
        """Return the median over windows of the Mahalanobis distance from the mean training scene."""
        return float(_scene_score(self.distance, windows)[0])

    def plain(self) -> dict[str, Setting]:
        """Return what is not an array, in plain values; `tensors` has the rest."""
        return {
            "names": list(self.names), "window": self.window, "alarms": self.alarms, "realized": self.realized,
        }  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """Return the arrays, to be stored beside `plain`."""
        held = {**vars(self.distance), "low": self.low, "high": self.high, "scores": self.scores}
        return {name: torch.from_numpy(np.ascontiguousarray(held[name])) for name in ARRAYS}

    @staticmethod
    def of(plain: Mapping[str, Setting], tensors: Mapping[str, Tensor]) -> SceneStatistics:
        """Return the statistics of what `plain` and `tensors` returned.

        Raises:
            DataError: Something is missing, or the sizes disagree.
        """
        try:
            arrays = {name: tensors[name].double().numpy() for name in ARRAYS}
            names, realized = tuple(map(str, plain["names"])), plain["realized"]  # type: ignore[arg-type]
            window, alarms = int(plain["window"]), float(plain["alarms"])  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError) as bad:
            raise DataError(f"scene statistics: expected {', '.join(ARRAYS)}, got {bad!r}; fit them again") from bad
        size = len(names)
        shapes = {name: (size, size) if name == "precision" else (size,) for name in ARRAYS if name != "scores"}
        if wrong := [name for name, shape in shapes.items() if arrays[name].shape != shape]:
            raise DataError(
                f"scene statistics: expected {wrong[0]} {shapes[wrong[0]]}, got {arrays[wrong[0]].shape}; fit them again"
            )
        distance = Mahalanobis(*(arrays[f.name] for f in fields(Mahalanobis)))
        rate = None if realized is None else float(realized)  # type: ignore[arg-type]
        return SceneStatistics(names, window, alarms, distance, arrays["low"], arrays["high"], arrays["scores"], rate)

    def _check(self, windows: DoubleArray) -> None:
        if windows.ndim != 2 or windows.shape[1] != len(self.names) or not len(windows):
            raise DataError(
                f"scene: expected windows (W, {len(self.names)}) of which one is seen to {LEAST_SEEN:.0%}, got {windows.shape}; "
                "describe windows of the same bands"
            )

    def _causes(self, windows: DoubleArray) -> tuple[str, ...]:
        """Name the entries that contribute most to the distance of the median window, at most one per band or pair.

        Those outside of the range of the training scenes; where all are inside it, the combination is unusual.
        """
        typical = np.median(windows, axis=0)
        z = self.distance.deviations(torch.from_numpy(typical)[None])[0].numpy()
        share = z * (self.distance.precision @ z)  # sums to the squared distance
        outside = (typical < self.low) | (typical > self.high)
        counted = (share > 0) & (outside | ~outside.any())
        chosen: dict[str, int] = {}
        for i in np.argsort(-share, kind="stable"):
            if counted[i]:
                chosen.setdefault(self.names[i].split(" ")[0], int(i))
        at = list(chosen.values())[:MOST_CAUSES]
        return tuple(f"{self.names[i]} {typical[i]:.3g}, training {self.low[i]:.3g} to {self.high[i]:.3g}" for i in at)


ARRAYS = (*(f.name for f in fields(Mahalanobis)), "low", "high", "scores")


def fit_scene_statistics(
    scenes: Mapping[str, DoubleArray], names: Sequence[str], window: int, alarms: float = 0.05
) -> SceneStatistics:
    """Return the statistics of training scenes, with the false-alarm rate on scenes that were left out.

    The cut-off is the conformal rank among the scores of the scenes, each by statistics of other scenes (those of its fold are
    left out). `realized` is the flagged share where the cut-off, too, is found without the scenes that are judged.

    Args:
        scenes: Scene to the vectors (W, D) of its windows.
        names: What the entries are.
        window: Side of a window in pixels.
        alarms: Share of scenes like these that may be flagged.

    Raises:
        UsageError: `alarms` is not a rate, or takes more scenes than there are.
        DataError: The vectors are not finite or have other entries than `names`.

    Paper: Lee et al. 2018, arXiv:1807.03888, the Mahalanobis distance; Ledoit and Wolf 2004, the shrinkage. Differs: of
    statistics of bands, one row per scene.
    """
    rows = [np.asarray(scenes[scene], np.float64) for scene in sorted(scenes)]
    _check_rows(rows, len(names), alarms)

    def fit(some: Sequence[DoubleArray]) -> GroupScores:
        return partial(_scene_score, _distance_of(some, names))

    means, flags = np.stack([row.mean(0) for row in rows]), left_out_flags(rows, fit, alarms)
    return SceneStatistics(
        tuple(names), window, alarms, _distance_of(rows, names), means.min(0), means.max(0),
        np.sort(np.concatenate(left_out_scores(rows, fit))), None if flags is None else float(np.mean(flags)),
    )  # fmt: skip


def _check_rows(rows: list[DoubleArray], entries: int, alarms: float) -> None:
    check_clean_groups("scene statistics", len(rows), alarms)
    for row in rows:
        if row.ndim != 2 or row.shape[1] != entries or not len(row) or not np.isfinite(row).all():
            raise DataError(
                f"scene statistics: expected finite vectors (W, {entries}) of each scene, got {row.shape}; use describe_windows"
            )


def _distance_of(scenes: Sequence[DoubleArray], names: Sequence[str]) -> Mahalanobis:
    """Return the distance from the mean scene, one row per scene."""
    limits = np.array(
        [MOST_BOUNDED if name.endswith(CORRELATION) or name.startswith(INDEX) else np.inf for name in names]
    )
    return fit_mahalanobis(np.stack([windows.mean(0) for windows in scenes]), limits)


def _scene_score(distance: Mahalanobis, windows: DoubleArray) -> DoubleArray:
    """Return the score (1,) of a scene by its windows (W, D)."""
    return np.array([np.median(distance.distances(torch.from_numpy(windows)).numpy())])


def collect_windows(
    batches: Iterable[Batch], scenes: Mapping[str, str], bands: Sequence[str], unit: Units, window: int
) -> dict[str, DoubleArray]:
    """Return scene to the vectors (W, D) of the windows of its chips; a scene without a window is left out.

    Args:
        batches: Chips; labels are not looked at.
        scenes: Scene of each chip; a chip without one is its own scene.
        bands: Bands of the chips.
        unit: Their unit.
        window: Side of a window in pixels; of a smaller chip the whole is one window.
    """
    found: dict[str, list[DoubleArray]] = {}
    for batch in batches:
        image, seen = (part.cpu().numpy() for part in (batch.image, batch.bandwise().image_seen))
        for i, chip in enumerate(batch.chips):
            vectors = describe_windows(image[i], seen[i], bands, unit, window)
            found.setdefault(scenes.get(chip, chip), []).append(vectors)
    joined = {scene: np.concatenate(parts) for scene, parts in found.items()}
    return {scene: vectors for scene, vectors in joined.items() if len(vectors)}


def describe_windows(
    image: FloatArray, seen: BoolArray, bands: Sequence[str], unit: Units, window: int = WINDOW_PIXELS, most: int = 256
) -> DoubleArray:
    """Return the vectors (W, D) of the windows of an image; windows with too little data are left out.

    Args:
        image: (C, H, W) in data units; values of unseen pixels are not looked at.
        seen: (H, W), or (C, H, W) where each band has holes of its own.
        bands: Names of the bands.
        unit: Their unit.
        window: Side of a window in pixels.
        most: Windows that are described at most, spread evenly over the image.

    Raises:
        DataError: The shapes disagree with the bands.
    """
    if image.ndim != 3 or image.shape[0] != len(bands) or seen.shape not in (image.shape, image.shape[1:]):
        raise DataError(
            f"scene statistics: expected an image ({len(bands)}, H, W) and where it is seen, got {image.shape} and {seen.shape}; "
            "name every band"
        )
    known = np.broadcast_to(seen, image.shape) & np.isfinite(image)
    vectors = [
        _describe(image[:, rows, columns], known[:, rows, columns], bands, unit)
        for rows, columns in window_slices(image.shape[1], image.shape[2], window, most)
        if known[:, rows, columns].mean((1, 2)).min() >= LEAST_SEEN
    ]
    return np.array(vectors, np.float64).reshape(-1, len(entry_names(bands, unit)))


def window_slices(height: int, width: int, window: int, most: int = 256) -> list[tuple[slice, slice]]:
    """Return rows and columns of the windows of an image: side by side, the last ones moved inwards; at most so many, spread evenly.

    Example:
        >>> window_slices(100, 250, 128)
        [(slice(0, 100, None), slice(0, 128, None)), (slice(0, 100, None), slice(122, 250, None))]
    """

    def starts(length: int) -> list[int]:
        return sorted({max(0, min(start, length - window)) for start in range(0, length, window)})

    corners = [(row, column) for row in starts(height) for column in starts(width)]
    kept = [
        corners[i] for i in np.unique(np.linspace(0, len(corners) - 1, min(most, len(corners))).round().astype(int))
    ]
    return [(slice(r, min(r + window, height)), slice(c, min(c + window, width))) for r, c in kept]


def entry_names(bands: Sequence[str], unit: Units) -> tuple[str, ...]:
    """Return what the entries of a window's vector are.

    Example:
        >>> entry_names(["VH"], "sigma0_db")
        ('VH mean', 'VH deviation', 'VH 5 % quantile', 'VH 50 % quantile', 'VH 95 % quantile', 'VH gradient')
    """
    own = ["mean", "deviation", *(f"{q} % quantile" for q in QUANTILES), "gradient"]
    of_bands = [f"{band} {what}" for band in bands for what in own]
    pairs = [f"{first}/{second} {CORRELATION}" for first, second in combinations(bands, 2)]
    index = [f"{INDEX} {q} % quantile" for q in QUANTILES] if _ndwi_channels(bands, unit) else []
    return (*of_bands, *pairs, *index)


def _ndwi_channels(bands: Sequence[str], unit: Units) -> tuple[int, int] | None:
    """Return the channels of green and near infrared, where the image has both as reflectance."""
    reflectance = [band for band, one in zip(bands, units_of(unit, len(bands)), strict=True) if one == "reflectance"]
    found = [channel for channel in NDWI.channels([short_band(band) for band in reflectance]) if channel is not None]
    return (bands.index(reflectance[found[0]]), bands.index(reflectance[found[1]])) if len(found) == 2 else None


def _describe(image: FloatArray, seen: BoolArray, bands: Sequence[str], unit: Units) -> list[float]:
    """Return the vector of one window, every entry over seen pixels alone."""
    entries = [value for plane, known in zip(image, seen, strict=True) for value in _of_band(plane, known)]
    for first, second in combinations(range(len(bands)), 2):
        both = seen[first] & seen[second]
        entries.append(_pearson(image[first][both], image[second][both]))
    if (at := _ndwi_channels(bands, unit)) is not None:
        index, known = NDWI(image[list(at)], seen[at[0]] & seen[at[1]], NDWI.bands)
        entries += map(float, np.percentile(index[known], QUANTILES) if known.any() else np.zeros(len(QUANTILES)))
    return entries


def _of_band(plane: FloatArray, seen: BoolArray) -> Iterator[float]:
    values = plane[seen].astype(np.float64)
    yield from (float(values.mean()), float(values.std()))
    yield from map(float, np.percentile(values, QUANTILES))
    down, right = (np.diff(plane.astype(np.float64), axis=axis) for axis in (0, 1))
    change = np.concatenate([down[seen[1:] & seen[:-1]], right[seen[:, 1:] & seen[:, :-1]]])
    yield float(np.sqrt(np.square(change).mean())) if len(change) else 0.0


def _pearson(first: FloatArray, second: FloatArray) -> float:
    """Return Pearson's correlation, 0 where one of the two does not vary."""
    if len(first) < 2:
        return 0.0
    a, b = (values.astype(np.float64) - values.mean(dtype=np.float64) for values in (first, second))
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else 0.0
