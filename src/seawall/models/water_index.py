"""Water indices with a threshold, as segmentation models that are evaluated and attacked as networks are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seawall.bands import bands_of_one_source
from seawall.errors import ModelError, UsageError
from seawall.labels.rules import ThresholdRule, parse_rule
from seawall.labels.threshold import MIN_SEPARABILITY, split_histogram
from seawall.labels.water_indices import NormalizedDifference, WaterIndex, parse_index
from seawall.models.blocks import check_fitted, check_image_bands, settings_of
from seawall.modules import to_device_of
from seawall.registry import register
from seawall.threat.model import Ball
from seawall.types import Batch, ModelSpec, seen_pixels

FINE_BINS, OTSU_BINS = 65536, 256
"""Bins of the histogram over the range of an index, and of the one over the occurring values."""


@register("model", "threshold", smoke={"index": "auto"})
@dataclass(frozen=True)
class WaterIndexThreshold:
    """A water index with a threshold: logits (0, z) with z = sharpness * (index - threshold), water above.

    For radar, water is below the threshold. An unseen pixel (all bands at the fill value) and a pixel
    where a ratio is undefined are land, without a gradient.

    Args:
        index: A registered water index, such as "ndwi"; "auto" takes MNDWI, NDWI, VV or VH, the first whose bands the
            data has.
        rule: "fixed" keeps the threshold; "otsu" moves it when the model is fitted to training images.
        threshold: In the unit of the index; None takes the published default.
        sharpness: Logit per unit of the index; it changes probabilities, never the map. None takes 10 per
            index unit, 1 per dB.
        separability: Otsu is kept only where between-class over total variance reaches this (a single normal peak has
            0.64, a flat histogram 0.75) and a valley parts the two peaks, as for labels; else the fixed threshold stays.
    """

    index: str = "auto"
    rule: Literal["fixed", "otsu"] = "fixed"
    threshold: float | None = None
    sharpness: float | None = None
    separability: float = MIN_SEPARABILITY

    def __post_init__(self) -> None:
        if self.index != "auto":
            parse_index(self.index)
        if self.sharpness is not None and not self.sharpness > 0:
            raise UsageError(f"threshold.sharpness: expected a number above 0, got {self.sharpness}; 10 is the default")
        if not 0 <= self.separability < 1:
            raise UsageError(
                f"threshold.separability: expected a share in [0, 1), got {self.separability}; {MIN_SEPARABILITY:g} is the default"
            )

    def __call__(self, spec: ModelSpec) -> ThresholdNet:
        return ThresholdNet(replace(spec, architecture="threshold", settings=settings_of(asdict(self))), self)


def parse_threshold(where: str, text: str) -> WaterIndexThreshold:
    """Return the threshold of a text such as "mndwi > 0".

    Args:
        where: What the text is, for messages.
        text: An index, ">" or "<", and a number.

    Raises:
        UsageError: The text is no fixed threshold on a water index.

    Example:
        >>> parse_threshold("baseline", "vv < -17").threshold
        -17.0
    """
    rule = parse_rule(text)
    if not isinstance(rule, ThresholdRule) or rule.inclusive:
        raise UsageError(f'{where}: expected a threshold such as "mndwi > 0" or "vv < -17", got {text!r}; use < or >')
    return WaterIndexThreshold(str(rule.index), threshold=rule.at)


class ThresholdNet(nn.Module):
    """The model of a thresholded water index; the threshold is a buffer, so that it is saved and loaded as weights are.

    Args:
        spec: Needs the bands of the index, and two classes, one of them "water".
        settings: Index and threshold.

    Raises:
        ModelError: The specification lacks a band or the classes, or has another unit.
    """

    threshold: Tensor
    fitted: Tensor
    reach, stride = 0, 1  # every pixel is classified alone

    def __init__(self, spec: ModelSpec, settings: WaterIndexThreshold) -> None:
        super().__init__()
        self.spec = spec
        self.index = parse_index(settings.index) if settings.index != "auto" else _first_index(spec)
        self.settings = settings
        _check_index_spec(spec, self.index)
        self.places = tuple(
            place for place in self.index.channels(bands_of_one_source(spec.bands)) if place is not None
        )
        self.water = spec.classes.index("water")
        self.sharpness = settings.sharpness or (10.0 if spec.unit == "reflectance" else 1.0)
        start = self.index.threshold if settings.threshold is None else settings.threshold
        self.register_buffer("threshold", torch.tensor(float(start)))
        self.register_buffer("fitted", torch.tensor(settings.rule == "fixed"))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, 2, H, W), differentiable in the image.

        Raises:
            ModelError: The rule is "otsu" and the model was never fitted, or the image has other bands.
        """
        check_fitted(str(self.index), self.fitted)
        return self.scores(*self.measure(image))

    def scores(self, index: Tensor, defined: Tensor) -> Tensor:
        """Return the logits (N, 2, ...) of values (N, ...) of the index; land where it is not defined."""
        z = self.sharpness * self.index.sign * (index - self.threshold)
        z = torch.where(defined, z, -self.sharpness)
        pair = [torch.zeros_like(z), z]
        return torch.stack(pair if self.water == 1 else pair[::-1], 1)

    def measure(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the index (B, H, W) and where it is defined; 0 where it is not."""
        check_image_bands(str(self.index), image, len(self.spec.bands))
        bands = [image[:, place] for place in self.places]
        defined = seen_pixels(image, self.spec.unit)
        divisor = self.index.divisor(*bands)
        if divisor is not None:
            defined = defined & (divisor > 1e-6)
            # Divide by 2 where undefined: a NaN would come back through the gradient.
            bands = [torch.where(defined, band, 1.0) for band in bands]
        return torch.where(defined, self.index.formula(*bands), 0.0), defined

    def fit(self, batches: Iterable[Batch], seed: int = 0) -> None:
        """Set the threshold by Otsu's method over the seen pixels of training images, if their histogram has two peaks.

        Args:
            batches: Training chips; one pass, bounded memory.
            seed: Unused: nothing is drawn.

        Raises:
            UsageError: The rule is "fixed".
        """
        if self.settings.rule != "otsu":
            raise UsageError(f'threshold.rule: expected "otsu" to fit, got {self.settings.rule!r}; set rule = "otsu"')
        low, high = self.index.span
        counts = torch.zeros(FINE_BINS, dtype=torch.float64)
        for chips in batches:
            batch = to_device_of(self, chips)
            index, defined = self.measure(batch.image)
            values = index[defined & batch.seen].clamp(low, high).float().cpu()
            counts += torch.histc(values, len(counts), low, high).double()
        self.fitted.fill_(True)
        found = split_histogram(*_histogram(counts, low, high), separability=self.settings.separability)
        if found.method == "otsu":
            self.threshold.fill_(found.value)


def _histogram(fine: Tensor, low: float, high: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return 256 bins over the occurring values, as `labels.threshold.otsu` has them, from a fine histogram."""
    counts = fine.numpy().astype(np.int64)
    at = np.flatnonzero(counts)
    if len(at) < 2:  # one value or none: nothing to split
        return counts[at], np.array([low, high])
    centers = low + (at + 0.5) * ((high - low) / len(counts))
    bins, edges = np.histogram(centers, OTSU_BINS, weights=counts[at])
    return bins.astype(np.int64), np.asarray(edges, np.float64)


def _first_index(spec: ModelSpec) -> WaterIndex:
    order = ("mndwi", "ndwi", "vv", "vh")
    for name in order:
        index = parse_index(name)
        if None not in index.channels(bands_of_one_source(spec.bands)):
            return index
    raise ModelError(
        f"threshold: expected the bands of {', '.join(order)}, got {', '.join(spec.bands)}; train a network instead"
    )


def _check_index_spec(spec: ModelSpec, index: WaterIndex) -> None:
    lacking = [
        band
        for band, place in zip(index.bands, index.channels(bands_of_one_source(spec.bands)), strict=True)
        if place is None
    ]
    if lacking:
        raise ModelError(
            f"{index}: expected the bands {', '.join(index.bands)}, got none called {', '.join(lacking)}; choose an index of these bands"
        )
    if spec.unit not in index.units:
        raise ModelError(
            f"{index}: expected {' or '.join(index.units)}, got {spec.unit}; a threshold has no meaning in another unit"
        )
    if len(spec.classes) != 2 or "water" not in spec.classes:
        raise ModelError(
            f"{index}: expected two classes, one of them 'water', got {', '.join(spec.classes)}; train a network instead"
        )


DEFINED_SUM = 2e-6
"""Sum of the bands of a normalized difference: twice the smallest at which `ThresholdNet` defines it."""


def extreme_images(model: ThresholdNet, ball: Ball) -> tuple[Tensor, ...]:
    """Return images of a threat set, each (B, C, H, W), among which is the worst case of every pixel.

    In a box every pixel is perturbed independently. Water is `index > t`; for a normalized difference (a - b) / (a + b)
    with a + b > 0 and |t| < 1 that is (1 - t) a - (1 + t) b > 0, so it is linear as the other indices are, and a linear
    function is extreme where each band is at the end of its interval given by the sign of its coefficient (`WaterIndex.slopes`). Further images
    beside these two corners are the clean image, the darkest one (a ratio without a positive sum is land), and the corner
    of the most water with a positive sum.

    Args:
        model: A threshold model.
        ball: The threat set around the clean images.

    Returns:
        The images; none where the worst case has no closed form: in l2 the pixels share one budget, beyond |t| = 1 a
        normalized difference needs a negative band, and an index may declare no slopes or divide by something else.
    """
    index = model.index
    ratio = isinstance(index, NormalizedDifference)
    if ball.norm != "linf" or (ratio and not abs(float(model.threshold)) < 1):
        return ()
    if not index.slopes or (not ratio and index.divisor(*ball.x[:, list(model.places)].unbind(1)) is not None):
        return ()
    if ball.spectrum is not None:
        return ball.x, ball.x + ball.low * ball.spectrum, ball.x + ball.high * ball.spectrum
    most, least = ball.x.clone(), ball.x.clone()
    for place, slope in zip(model.places, index.slopes, strict=True):
        ends = (ball.high, ball.low) if slope > 0 else (ball.low, ball.high)
        most[:, place], least[:, place] = ends[0][:, place], ends[1][:, place]
    found = [ball.x, most, least, ball.low]
    if ratio:
        rises, falls = model.places
        found.append(most.clone())
        enough = torch.maximum(ball.low[:, falls], DEFINED_SUM - most[:, rises])
        found[-1][:, falls] = torch.minimum(enough, ball.high[:, falls])
    return tuple(found)
